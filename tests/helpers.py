"""Small things that many tests need."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psutil

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


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process and all its children without ending them: their kernel goes on to answer for them."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    try:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
