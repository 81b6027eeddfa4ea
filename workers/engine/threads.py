"""Where torch may run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def aside(call: Callable[[], T]) -> T:
    """Run torch's work for another thread than the engine's: on a thread that ends with it.

    OpenMP keeps a team of threads for every thread that ever multiplied. Once there are more of them than cores, all
    sleep between operations instead of waiting awake, and the engine makes a third fewer tokens.
    """
    with ThreadPoolExecutor(1) as passing:
        return passing.submit(call).result()
