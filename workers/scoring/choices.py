"""Choices as a language model makes them, read from its scores: one of each list in turn, and never anything else."""

import time
from collections.abc import Sequence

from workers.models.tokenizer import Tokenizer
from workers.protocols import Engine, Refused, ScoreRequest


def choices_made(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    lists: Sequence[Sequence[str]],
    *,
    joint: str,
    adapter: str,
    seconds: float,
) -> list[str]:
    """What a reply that joins a choice of each list by `joint` would say, were it decoded greedily and nothing else
    allowed.

    A choice is told by its first token, so that each takes one pass. Raises `TimeoutError` where all take longer than
    `seconds`, `Refused` (`unsupported_tokenizer`) where two begin with the same token, and what the engine raises.
    """
    ends = time.monotonic() + seconds
    made: list[str] = []
    for choices in lists:
        said = joint.join((*made, ""))
        prefix = tokenizer.encode(said.rstrip())
        texts = [f"{said[len(said.rstrip()) :]}{choice}" for choice in choices]  # a word's token has the space before
        labels = tuple(tokenizer.encode(text)[0] for text in texts)
        if len(set(labels)) < len(labels):
            raise Refused("unsupported_tokenizer", f"two of {', '.join(choices)} begin with the same token")
        handle = engine.score(ScoreRequest("choice", (*prompt, *prefix), ((),), labels, priority=0, adapter=adapter))
        try:
            (scores,) = handle.wait(max(ends - time.monotonic(), 0.0)).logprobs
        except TimeoutError:
            handle.cancel()
            raise
        made.append(choices[scores.index(max(scores))])
    return made
