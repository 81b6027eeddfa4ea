"""The supervisor, with real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lyo.processes import Console, Process, SetupError, Supervisor
from tests.helpers import until

SLEEPER = (sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-S",
    "-c",
    "import signal; signal.signal(15, print); print('up', flush=True)\nwhile 1: signal.pause()",
)
PARENT = (
    sys.executable,
    "-S",
    "-c",
    "import subprocess as s; p = s.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()",
)


class Log:
    """What the processes have said, and each table of pids that was told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.tables: list[dict[str, int]] = []

    def say(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    def of(self, name: str) -> list[str]:
        return [line for source, line in self.lines if source == name]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def supervisor(log: Log) -> Iterator[Supervisor]:
    supervisor = Supervisor(say=log.say, on_change=log.tables.append)
    yield supervisor
    supervisor.stop(grace_s=0)


def sleeper(name: str) -> Process:
    return Process(name=name, argv=SLEEPER)


def test_a_killed_process_is_back_at_once_and_the_table_is_true(supervisor: Supervisor, log: Log) -> None:
    supervisor.start(sleeper("one"), sleeper("two"))
    before = supervisor.pids()
    start = time.monotonic()
    supervisor.kill("one")
    until(lambda: supervisor.pid("one") not in (None, before["one"]), every=0.001)
    assert time.monotonic() - start < 0.2
    after = supervisor.pids()
    assert after["two"] == before["two"]
    assert log.tables[0] == before
    assert log.tables[-1] == after
    assert not psutil.pid_exists(before["one"])  # reaped
    assert log.of("supervisor") == ["one was killed by SIGKILL, restarting now"]


def test_what_dies_again_and_again_is_restarted_ever_more_slowly(supervisor: Supervisor, log: Log) -> None:
    supervisor.start(Process(name="broken", argv=[sys.executable, "-S", "-c", "raise SystemExit(3)"]))
    until(lambda: len(log.of("supervisor")) >= 4)
    pauses = [line.removeprefix("broken exited with 3, restarting ") for line in log.of("supervisor")]
    assert pauses[:4] == ["now", "in 0.25 s", "in 0.5 s", "in 1 s"]


def test_a_program_that_does_not_exist_is_named(supervisor: Supervisor, log: Log) -> None:
    supervisor.start(Process(name="missing", argv=["/no/such/program"]))
    until(lambda: any("/no/such/program" in line for _, line in log.lines))
    until(lambda: log.of("supervisor"))


def test_start_waits_for_the_probe(supervisor: Supervisor, tmp_path: Path) -> None:
    code = f"import pathlib, time; time.sleep(0.3); pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(600)"
    supervisor.start(Process(name="slow", argv=[sys.executable, "-c", code], ready=(tmp_path / "up").stat))
    assert (tmp_path / "up").exists()


def test_a_probe_that_never_passes_says_why(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"sleeper is not ready after 0 s: .*No such file"):
        supervisor.start(Process(name="sleeper", argv=SLEEPER, ready=(tmp_path / "never").stat, ready_s=0.3))


def test_stop_leaves_nothing_and_ends_what_came_last_first(log: Log) -> None:
    supervisor = Supervisor(say=log.say, on_change=log.tables.append)
    supervisor.start(sleeper("server"))
    supervisor.start(sleeper("client"), Process(name="stubborn", argv=STUBBORN), Process(name="parent", argv=PARENT))
    until(lambda: log.of("stubborn") and log.of("parent"))
    pids = [*supervisor.pids().values(), int(log.of("parent")[0])]
    supervisor.stop(grace_s=0.3)
    assert log.tables[-2:] == [{"server": pids[0]}, {}]
    until(lambda: not any(alive(pid) for pid in pids))


def test_a_killed_process_leaves_no_child_of_its_own(supervisor: Supervisor, log: Log) -> None:
    supervisor.start(Process(name="parent", argv=PARENT))
    until(lambda: log.of("parent"))
    supervisor.kill("parent")
    until(lambda: len(log.of("parent")) == 2)
    until(lambda: not alive(int(log.of("parent")[0])))


def test_a_killed_supervisor_leaves_nothing() -> None:
    code = (
        "import time; from lyo.processes import *\n"
        "s = Supervisor(say=lambda name, line: None)\n"
        f"s.start(Process(name='x', argv={SLEEPER!r}))\n"
        "print(s.pid('x'), flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        pid = int(owner.stdout.readline())  # type: ignore[union-attr]
        assert alive(pid)
        owner.kill()
    until(lambda: not alive(pid))


def test_lines_carry_the_name_and_survive_without_a_newline(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        supervisor = Supervisor(say=Console(file.fileno()))
        supervisor.start(
            Process(name="talker", argv=["sh", "-c", "echo one; echo two >&2; printf thr; printf ee; sleep 600"])
        )
        until(lambda: "two" in (tmp_path / "log").read_text())
        supervisor.stop()
    assert (tmp_path / "log").read_text() == "talker        | one\ntalker        | two\ntalker        | three\n"


def test_a_gone_terminal_does_not_keep_processes_alive() -> None:
    reader, writer = os.pipe()
    supervisor = Supervisor(say=Console(writer))
    supervisor.start(Process(name="yes", argv=["yes"]))
    os.read(reader, 10)
    os.close(reader)
    pid = supervisor.pid("yes")
    assert pid
    supervisor.stop()
    os.close(writer)
    assert not alive(pid)


def test_each_process_gets_its_own_stop_signal(log: Log) -> None:
    supervisor = Supervisor(say=log.say)
    supervisor.start(
        Process(
            name="x",
            argv=["sh", "-c", "trap 'echo USR1; exit' USR1; echo up; while :; do sleep 0.05; done"],
            stop_signal=signal.SIGUSR1,
        )
    )
    until(lambda: log.of("x"))
    supervisor.stop()
    assert log.of("x") == ["up", "USR1"]


def alive(pid: int) -> bool:
    """Whether the process runs; where nobody reaps orphans a dead one may stay a zombie."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
