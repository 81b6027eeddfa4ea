"""Numbers from 0 to 1 as a language model says them, read from its scores: their mean, not the likeliest digits."""

from collections.abc import Sequence

import numpy as np

from workers.models.tokenizer import Tokenizer
from workers.protocols import Refused

DIGITS = "0123456789"


def number_tree(tokenizer: Tokenizer) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Continuations and labels of a `ScoreRequest` from which the distribution over 0.00 to 1.00 can be read.

    After nothing, after `0.` and after `0.0` to `0.9`: each of the digits. Raises `Refused` where they are no tokens.
    """
    texts = ["", "0.", *(f"0.{digit}" for digit in DIGITS)]
    beginnings, digits = [tuple(tokenizer.encode(text)) for text in texts], tuple(tokenizer.encode(DIGITS))
    if [len(tokens) for tokens in beginnings] != [len(text) for text in texts] or len(digits) != len(DIGITS):
        raise Refused("unsupported_tokenizer", "the model's tokenizer has no token for each digit")
    return tuple(beginnings), digits


def number_expected(logprobs: Sequence[Sequence[float]]) -> float:
    """The mean of the number that a model would say, from `number_tree`'s log-probabilities: [12, 10], in nats.

    What is no such number is left out. A mean needs one pass, and unlike a greedy reply it ranks and is calibrated.
    """
    first, tenths, *hundredths = np.exp(np.asarray(logprobs, dtype=float))
    digits = np.arange(len(DIGITS))
    after_tenth = np.array([row @ digits / row.sum() for row in hundredths]) / 100
    below_one = (tenths / tenths.sum()) @ (digits / 10 + after_tenth)
    zero, one = first[0], first[1]
    return float((zero * below_one + one) / (zero + one))
