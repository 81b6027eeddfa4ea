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


def require_room(messages: Iterable[Mapping[str, Any]], *, field: str, answer: int = 1) -> None:
    """Raise `ValidationError` of `field` where `messages` and an answer of `answer` tokens exceed the context."""
    least = least_tokens(messages)
    room = env.CONTEXT_TOKENS - least
    if room < 1:
        raise ValidationError({field: [too_long(f"this takes at least {least}.")]})
    if room < answer:
        problem = f"this takes at least {least}, which leaves at most {room}; an answer of {answer} is asked for."
        raise ValidationError({field: [too_long(problem)]})


def too_long(problem: str) -> ErrorDetail:
    """Word the refusal of what does not fit as the worker does, in the words that clients of OpenAI look for."""
    limit = f"This model's maximum context length is {env.CONTEXT_TOKENS} tokens, answer included"
    return ErrorDetail(f"{limit}; {problem}", code=TOO_LONG)
