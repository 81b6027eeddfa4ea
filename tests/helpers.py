"""Small things that many tests need."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(probe: Callable[[], T], seconds: float = 10.0, every: float = 0.02) -> T:
    """The first truthy answer of `probe`; fails when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        if answer := probe():
            return answer
        assert time.monotonic() < end, f"not within {seconds:g} s: {probe}"
        time.sleep(every)


def wide(text: str) -> str:
    """The same letters at full width, as East Asian keyboards write them."""
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)
