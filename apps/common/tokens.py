"""How many tokens a prompt has at least: told from its length, before a row is made or a worker reads it.

The web has no tokenizer. It refuses what can never fit, in microseconds, and never what might: how many tokens there
really are, the worker finds out.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from rest_framework.exceptions import ErrorDetail, ValidationError

from lyo import env

TOO_LONG = "context_length_exceeded"  # the code of a refusal, here or by the worker
TURN = 3  # the marks around a turn, and the line's end after it; its speaker's name is part of its text
FRAME = 4  # the first token, and the head of the answer


def least_tokens(messages: Iterable[Mapping[str, Any]]) -> int:
    """A lower bound of the tokens of a prompt of `messages`, as `workers.models.template.render` makes it."""
    turns = groupby(messages, key=lambda message: message["role"] == "assistant")
    texts = ("\n\n".join(message["content"].strip() for message in turn) for _, turn in turns)
    return FRAME + sum(TURN + least_text_tokens(f"user\n{text}") for text in texts)


def least_text_tokens(text: str) -> int:
    """The vocabulary writes a space as U+2581, so that one is as short as a space."""
    return -(-len(text.replace("\u2581", " ").encode(errors="surrogatepass")) // env.LONGEST_TOKEN)


def require_room(messages: Iterable[Mapping[str, Any]], *, field: str) -> None:
    """Raise `ValidationError` of `field` where `messages` and one token of an answer exceed the context."""
    least = least_tokens(messages)
    if least >= env.CONTEXT_TOKENS:
        problem = (
            f"This model's maximum context length is {env.CONTEXT_TOKENS} tokens, answer included; this takes at least "
            f"{least}."
        )
        raise ValidationError({field: [ErrorDetail(problem, code=TOO_LONG)]})
