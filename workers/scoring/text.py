"""What can be counted in a text, whatever it is about."""

import math
import re
from collections import Counter
from itertools import pairwise

import numpy as np

FEATURES = ("length", "sentence", "variety", "repeated", "capitals", "shouting", "symbols", "order")
SENTENCE = re.compile(r"[.!?]+(?:\s|$)")
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
PUNCTUATION = ".,;:!?()\"'-\u2013\u2019"
LONGEST = 2000  # words that are looked at


def features(text: str) -> np.ndarray:
    """[FEATURES], each about from -2 to 2 for a text that somebody wrote with care."""
    words = WORD.findall(text)[:LONGEST]
    letters = sum(map(len, words)) or 1
    sentences = max(1, len(SENTENCE.findall(text)))
    lower = [word.lower() for word in words]
    counts = Counter(lower)
    pairs = Counter(pairwise(lower))
    n = max(1, len(words))
    return np.array(
        [
            math.log1p(len(words)) - 4,
            min(4.0, abs(math.log((n / sentences) / 14))),
            len(counts) / n**0.8 - 1.5,
            sum(count - 1 for count in pairs.values()) / n * 5,
            sum(word.isupper() and len(word) > 1 for word in words) / n * 5,
            text.count("!") / sentences,
            sum(not (c.isalnum() or c.isspace() or c in PUNCTUATION) for c in text) / letters * 10,
            sum(word[:1].isupper() for word in words) / sentences - 1,
        ],
        dtype=np.float32,
    )
