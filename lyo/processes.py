"""A small process supervisor: starts a table of processes, restarts what dies, and leaves nothing behind.

It knows nothing of Lyo. One thread starts, reaps and reads all children, so the callers' threads only ask and wait.
"""

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TICK_S = 0.05  # how soon a death is noticed
STEADY_S = 10.0  # a process that lived so long is restarted at once when it dies
BACKOFF_S = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0)  # pause before the n-th restart in a row

# setpriv (util-linux) lets the kernel kill a child whose supervisor was killed, and then becomes the child. A
# `preexec_fn` could ask for the same, but runs Python between fork and exec, where other threads' locks stay locked.
SETPRIV = shutil.which("setpriv")
TIED = [SETPRIV, "--pdeathsig", "KILL", "--"] if SETPRIV and sys.platform == "linux" else []


class SetupError(Exception):
    """What a person has to mend before Lyo can run; shown as one line."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """What should run. `ready` raises until the process serves; `user` is the uid and gid to run as."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None  # None: the supervisor's own
    cwd: Path | None = None
    user: int | None = None
    ready: Callable[[], object] | None = None
    ready_s: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM


class Console:
    """Whole lines of many sources on one stream, each behind its name, coloured on a terminal."""

    def __init__(self, fd: int = 1) -> None:
        self._raw = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115
        self._colours: dict[str, int] | None = {} if os.isatty(fd) else None
        self._lock = threading.Lock()

    def __call__(self, name: str, text: str) -> None:
        prefix = f"{name:<13} | "
        with self._lock, contextlib.suppress(OSError):  # the terminal may be gone; the processes must still be stopped
            if self._colours is not None:
                prefix = f"\033[{31 + self._colours.setdefault(name, len(self._colours)) % 6}m{prefix}\033[0m"
            self._raw.write(f"{prefix}{text}\n".encode())


@dataclass
class _Row:
    """A process of the table, and the child that runs for it now."""

    process: Process
    child: subprocess.Popen[bytes] | None = None
    wanted: bool = True
    started: float = 0.0
    due: float = 0.0  # not to be started earlier
    deaths: int = 0  # in a row, each soon after its start


@dataclass
class _Output:
    """A pipe's last, unfinished line. The pipe may outlive the child: grandchildren hold it too."""

    name: str
    rest: bytes = b""


@dataclass
class Supervisor:
    """Keeps processes running until `stop`.

    `say(name, line)` gets every line of output; `on_change({name: pid})` is called when a pid comes, changes or goes.
    """

    say: Callable[[str, str], None] = field(default_factory=Console)
    on_change: Callable[[dict[str, int]], None] = lambda pids: None

    def __post_init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._batches: list[list[_Row]] = []
        self._outputs = selectors.DefaultSelector()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self, *processes: Process) -> None:
        """Start processes side by side and return when each one that can tell is ready.

        Processes started together are stopped together, after everything that was started later.
        """
        batch = [_Row(process) for process in processes]
        with self._changed:
            self._batches.append(batch)
            self._rows |= {row.process.name: row for row in batch}
        if not self._thread.ident:
            self._thread.start()
        for process in processes:
            self.wait_ready(process.name)

    def wait_ready(self, name: str) -> None:
        """Wait for the probe to pass (without one: for the start); raises `SetupError` with its last complaint."""
        row = self._rows[name]
        probe, wait_s = row.process.ready, row.process.ready_s
        end, pause, complaint = time.monotonic() + wait_s, TICK_S, "it does not start"
        while time.monotonic() < end:
            if probe is None and (row.child or row.deaths):
                return
            if probe and row.child:
                try:
                    probe()
                    return
                except Exception as error:  # each protocol has its own way to say "not yet"
                    complaint = str(error).strip().partition("\n")[0]
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)
        raise SetupError(f"{name} is not ready after {wait_s:.0f} s: {complaint}")

    def pid(self, name: str) -> int | None:
        """The pid now, or None while the process is down."""
        return self.pids().get(name)

    def pids(self) -> dict[str, int]:
        """Name and pid of each process that runs, in order of start."""
        with self._changed:
            return {name: row.child.pid for name, row in self._rows.items() if row.child}

    def kill(self, name: str, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to a process; what dies of it is restarted."""
        with self._changed:  # nothing is reaped meanwhile, so the pid is not another's
            if child := self._rows[name].child:
                os.kill(child.pid, signal_number)

    def join(self) -> None:
        """Wait until `stop` is done, or the supervisor has failed."""
        self._thread.join()

    def stop(self, grace_s: float = 8.0) -> None:
        """Stop all, the last started first: `stop_signal`, and SIGKILL for what is still there after the grace."""
        for batch in reversed(self._batches):
            with self._changed:
                for row in batch:
                    row.wanted = False
                    self.kill(row.process.name, row.process.stop_signal)
                if not self._wait_gone(batch, grace_s):
                    for row in batch:
                        self.kill(row.process.name)
                    self._wait_gone(batch, 5.0)
        self._stopped = True
        if self._thread.ident:
            self.join()

    def _wait_gone(self, batch: list[_Row], timeout_s: float) -> bool:
        return self._changed.wait_for(lambda: not any(row.child for row in batch), timeout_s)

    def _run(self) -> None:
        while not self._stopped:
            self._forward(TICK_S)
            with self._changed:
                changed = [row for row in self._rows.values() if self._tend(row)]
                if changed:
                    self._changed.notify_all()
                    self._tell()
        self._forward(0)
        for key in list(self._outputs.get_map().values()):
            self._close(key)
        self._outputs.close()

    def _tell(self) -> None:
        try:
            self.on_change(self.pids())
        except OSError as error:  # a full disk must not end the supervision
            self.say("supervisor", f"the change of a pid could not be told: {error}")

    def _tend(self, row: _Row) -> bool:
        """Reap the child if it has died, and start one if it is wanted and due. True where the pid has changed."""
        dead = row.child is not None and row.child.poll() is not None
        if row.child and dead:
            self._bury(row, row.child)
        due = row.child is None and row.wanted and time.monotonic() >= row.due
        return (due and self._spawn(row)) or dead

    def _spawn(self, row: _Row) -> bool:
        process, row.started = row.process, time.monotonic()
        try:
            row.child = subprocess.Popen(  # noqa: S603
                [*TIED, *process.argv],
                env=process.env,
                cwd=process.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, and the group can be killed as a whole
                user=process.user,
                group=process.user,
                extra_groups=None if process.user is None else [],
            )
        except OSError as error:
            self._retry(row, f"cannot be started ({error.strerror}: {error.filename})")
            return False
        self._outputs.register(row.child.stdout, selectors.EVENT_READ, _Output(process.name))  # type: ignore[arg-type]
        return True

    def _bury(self, row: _Row, child: subprocess.Popen[bytes]) -> None:
        row.child = None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # what the dead left of its process group
        if row.wanted:
            code = child.returncode
            self._retry(row, f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}")

    def _retry(self, row: _Row, what: str) -> None:
        now = time.monotonic()
        row.deaths = 0 if now - row.started >= STEADY_S else row.deaths
        pause = BACKOFF_S[min(row.deaths, len(BACKOFF_S) - 1)]
        row.due, row.deaths = now + pause, row.deaths + 1
        self.say("supervisor", f"{row.process.name} {what}, restarting {f'in {pause:g} s' if pause else 'now'}")

    def _forward(self, timeout_s: float) -> None:
        for key, _ in self._outputs.select(timeout_s):
            chunk = os.read(key.fd, 65536)
            *lines, key.data.rest = (key.data.rest + chunk).split(b"\n")
            for line in lines:
                self.say(key.data.name, line.decode(errors="replace"))
            if not chunk:
                self._close(key)

    def _close(self, key: selectors.SelectorKey) -> None:
        if key.data.rest:
            self.say(key.data.name, key.data.rest.decode(errors="replace"))
        self._outputs.unregister(key.fileobj)
        key.fileobj.close()  # type: ignore[union-attr]
