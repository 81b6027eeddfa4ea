"""Ends all that a test run has started, however deep and in whatever session, once the run itself has ended.

`python -m tests.undertaker MARK PID...` waits until its standard input is closed, as the kernel does for a run that is
killed, or until one of the processes is gone: make, and what stands between make and the run, which is the last. What
was started by the run has the mark in its environment.
"""

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

MARK = "LYO_TEST_RUN"
LOOK_S = 0.3


def main() -> None:
    mark, *pids = sys.argv[1:]
    *above, run = [psutil.Process(int(pid)) for pid in pids]
    while all(alive(process) for process in (*above, run)):
        readable, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        if readable and not os.read(0, 1):
            break
    if not all(map(alive, above)):
        kill(run)
    while left := list(marked(mark)):
        for process in left:
            kill(process)


def over_the_run() -> Iterator[int]:
    """The run's ancestors up to make; none where it was not make that started it."""
    above = psutil.Process().parents()
    makes = [index for index, process in enumerate(above) if Path(process.name()).name in ("make", "gmake")]
    return (process.pid for process in reversed(above[: makes[0] + 1] if makes else []))


def marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and alive(process):
                yield process


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()


if __name__ == "__main__":
    main()
