"""The process beside a worker that renews the leases of its jobs: `python -m apps.jobs.heartbeat`.

It has an interpreter of its own, so that nothing a worker computes, however long it holds its lock, looks like a death.
It stops renewing when its worker is gone or frozen, and ends one that stands still. What it needs is small: no Django.
Beat has one, too, without leases.

The worker writes lines to its standard input, first the parameters of the database's connection as JSON:

    hold TOKEN        a job is, or is about to be, claimed by this lease token
    release TOKEN     that job has ended
    alive SECONDS     the worker's interpreter runs; something else of it has stood still for so long

and reads `beat` after each round, and `lost TOKEN` where a lease that was renewed before is no longer there.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any
from uuid import UUID

import psutil
import psycopg

from apps.common.database import patient
from lyo import env

# A row that somebody has locked is passed over: the others' leases must not wait for it, and nobody can take it either.
EXTEND = """
UPDATE jobs_job SET lease_expires_at = now() + make_interval(secs => %s)
 WHERE id IN (SELECT id FROM jobs_job WHERE state = 'running' AND lease_token = ANY(%s) FOR UPDATE SKIP LOCKED)
"""
HELD = "SELECT lease_token FROM jobs_job WHERE state = 'running' AND lease_token = ANY(%s)"
BURY = (
    "UPDATE jobs_job SET lease_expires_at = now(), worker_died = true WHERE state = 'running' AND lease_token = ANY(%s)"
)
TIMEOUTS = {
    "options": "-c statement_timeout=2000 -c lock_timeout=1000",
    "connect_timeout": 2,
    "tcp_user_timeout": 4000,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
}
PATIENCE_S = 3.0  # with a server that is frozen, which its own time-outs do not end
FAREWELL_S = 10.0  # in which a dead worker's jobs can be given back; afterwards their leases have run out anyway
PAUSE_S = 30.0  # no beat takes so long: the machine slept
FROZEN = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class Held:
    """The leases of one worker. `renewed` are those that were there at the last beat."""

    def __init__(self, connect: dict[str, Any], lease_s: float) -> None:
        self._connect = {**connect, **TIMEOUTS, "autocommit": True}
        self._lease_s = lease_s
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()
        self._tokens: set[UUID] = set()
        self._renewed: set[UUID] = set()

    def hold(self, token: UUID) -> None:
        with self._lock:
            self._tokens.add(token)

    def release(self, token: UUID) -> None:
        with self._lock:
            self._tokens.discard(token)
            self._renewed.discard(token)

    def extend(self) -> set[UUID]:
        """Renew all leases in one statement; returns those that are no longer good. Without any, none is connected."""
        with self._lock:
            tokens = list(self._tokens)
        if not tokens:
            self._disconnect()
            return set()
        self._execute(EXTEND, [self._lease_s, tokens])
        found = {token for (token,) in self._execute(HELD, [tokens]).fetchall()}
        with self._lock:
            lost = (self._renewed & set(tokens) & self._tokens) - found
            self._renewed = (self._renewed | found) & self._tokens - lost
            self._tokens -= lost
        return lost

    def bury(self) -> int:
        """Say of all leases that their worker died, so that the jobs are given to others at once; returns how many."""
        with self._lock:
            tokens = list(self._tokens)
        return self._execute(BURY, [tokens]).rowcount if tokens else 0

    def _execute(self, statement: str, parameters: list[Any]) -> psycopg.Cursor[Any]:
        try:
            if self._connection is None:
                self._connection = patient(PATIENCE_S).connect(**self._connect)
            return self._connection.execute(statement, parameters)
        except psycopg.Error:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


class Worker:
    """What is known of the worker: the process that started this one."""

    def __init__(self, stall_s: float) -> None:
        self.pid = os.getppid()
        self.gone = threading.Event()  # its end of the pipe was closed
        self._process = psutil.Process(self.pid)
        self._stall_s = stall_s
        self._heard = time.monotonic()
        self._stalled_s = 0.0

    def alive(self, stalled_s: float) -> None:
        self._heard, self._stalled_s = time.monotonic(), stalled_s

    @property
    def dead(self) -> bool:
        return self.gone.is_set() or os.getppid() != self.pid

    @property
    def frozen(self) -> bool:
        """Whether it is stopped, by a signal or a debugger."""
        return self._process.status() in FROZEN

    @property
    def stuck_s(self) -> float:
        """How long it has made no progress, where that is past the bound; else 0."""
        silent_s = time.monotonic() - self._heard + self._stalled_s
        return silent_s if silent_s > self._stall_s else 0.0

    def excuse(self) -> None:
        """Forget its silence: this process was stopped, too."""
        self._heard = time.monotonic()


def main() -> None:
    """Beat until the worker is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # its end is the worker's
    held = Held(json.loads(sys.stdin.readline()), env.LEASE_S)
    worker = Worker(env.STALL_S)
    threading.Thread(target=listen, args=[held, worker], daemon=True).start()
    beaten_at = time.monotonic()
    while not worker.dead:
        if time.monotonic() - beaten_at > PAUSE_S:
            worker.excuse()
        beaten_at = time.monotonic()
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended since it was looked at
            if stuck_s := worker.stuck_s:
                os.kill(worker.pid, signal.SIGKILL)
                say(f"process {worker.pid} stood still for {stuck_s:.0f} s and was ended")
            elif not worker.frozen:  # else its leases run out
                beat(held)
        tell("beat")
        worker.gone.wait(env.HEARTBEAT_S)
    bury(held)


def listen(held: Held, worker: Worker) -> None:
    """Take the worker's lines until it is gone."""
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        match word:
            case "hold":
                held.hold(UUID(argument))
            case "release":
                held.release(UUID(argument))
            case "alive":
                worker.alive(float(argument))
    worker.gone.set()


def beat(held: Held) -> None:
    try:
        lost: Collection[UUID] = held.extend()
    except psycopg.Error as error:
        say(f"heartbeat missed: {str(error).strip()}")
        return
    for token in lost:
        tell(f"lost {token}")


def bury(held: Held) -> None:
    end = time.monotonic() + FAREWELL_S
    while True:
        try:
            if jobs := held.bury():
                say(f"the worker died with {jobs} jobs, which are given to others")
            return
        except psycopg.Error as error:
            if time.monotonic() > end:
                say(f"the worker died, and its jobs cannot be given back: {str(error).strip()}")
                return
            time.sleep(env.HEARTBEAT_S)


def tell(line: str) -> None:
    """Write a line to the worker, which may be gone."""
    with suppress(OSError):
        print(line, flush=True)


def say(text: str) -> None:
    """Write a line of log in the form that the worker's have."""
    if env.LOG_FORMAT == "json":
        text = json.dumps({"event": text, "logger": __name__, "level": "warning"})
    with suppress(OSError):  # whoever reads the log may be gone
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
