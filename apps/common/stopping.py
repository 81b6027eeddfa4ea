"""Tells those who serve for long that the process was asked to stop: after that the server allows them two seconds."""

from collections.abc import Callable

_listeners: list[Callable[[], None]] = []


def on_stop(listener: Callable[[], None]) -> None:
    """Have `listener` called, perhaps more than once, on the event loop that serves."""
    _listeners.append(listener)


def begin() -> None:
    for listener in _listeners:
        listener()
