"""Small things that many tests need."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

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


class Resident(NamedTuple):
    """Megabytes of this process: those that it wrote, and those of mapped files."""

    own: float
    of_files: float


def resident_mb() -> Resident:
    memory = psutil.Process().memory_info()
    return Resident((memory.rss - memory.shared) / 2**20, memory.shared / 2**20)


def environment_of_nobody() -> dict[str, str]:
    """The environment as it is on a machine where Lyo was never set up."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LYO_")}


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
