"""A Celery process's end of the process that watches it (`apps.jobs.heartbeat`): workers and beat have one each.

It renews the leases of jobs, and ends this process where it stands still: its interpreter, the engine's step, the
consumption of its queues, beat's ticks. Whatever started this process then starts it again. The thread that talks to it
also watches this process's memory.
"""

import ctypes
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

import psutil
import structlog
from celery.signals import beat_init, task_received, worker_ready
from django.db import connection
from redis.exceptions import RedisError

from apps.common import redis
from apps.jobs.metrics import RESIDENT
from apps.jobs.pools import POOLS, messages_held
from lyo import env

logger = structlog.get_logger(__name__)

TICK_S = 1.0  # how often the watching process is told that this one runs
RESTART_S = 0.5
SILENCE_S = 30.0  # of the watching process, which says something with every beat: then it hangs
LOOK_S = 5.0  # between two looks at the queues
TRIM_S = 60.0  # between two returns of freed memory to the system, which glibc does not do by itself
CONNECTION = ("host", "port", "dbname", "user", "password", "sslmode", "sslrootcert", "sslcert", "sslkey")


class Heartbeat:
    """Starts the watching process with the first lease or probe, and another one if it dies.

    A lease is held before the job is claimed: nothing that keeps this interpreter from running can then cost it.
    """

    def __init__(self) -> None:
        self.leases: dict[UUID, Callable[[], None]] = {}  # and what is called where one is lost
        self._probes: list[Callable[[], float]] = []
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._heard = 0.0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def watch(self, stalled_s: Callable[[], float]) -> None:
        """Have this process ended once `stalled_s`, asked every second, tells more than `LYO_STALL_S`."""
        with self._lock:
            self._probes.append(stalled_s)
            if self._process is None:
                self._start()

    def hold(self, token: UUID) -> None:
        with self._lock:
            self.leases[token] = lambda: None
            if self._process is None:
                self._start()
            else:
                self._tell(f"hold {token}")

    def on_lost(self, token: UUID, callback: Callable[[], None]) -> None:
        self.leases[token] = callback

    def release(self, token: UUID) -> None:
        with self._lock:
            del self.leases[token]
            self._tell(f"release {token}")

    def _start(self) -> None:
        self._heard = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "apps.jobs.heartbeat"],
            cwd=env.BASE_DIR,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # it outlives the worker's process group, to say that the worker died
        )
        parameters = connection.get_connection_params()
        self._tell(json.dumps({name: parameters[name] for name in CONNECTION if name in parameters}))
        for token in self.leases:
            self._tell(f"hold {token}")
        threading.Thread(target=self._listen, args=[self._process], name="heartbeat", daemon=True).start()
        threading.Thread(target=self._tick, args=[self._process], name="heartbeat-tick", daemon=True).start()
        threading.Thread(target=self._hear, args=[self._process], name="heartbeat-silence", daemon=True).start()

    def _tell(self, line: str) -> None:
        try:
            if self._process and self._process.stdin:
                self._process.stdin.write(f"{line}\n")
                self._process.stdin.flush()
        except OSError:
            logger.warning("the heartbeat process does not listen")  # `_listen` replaces it

    def _listen(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._heard = time.monotonic()
            word, _, token = line.strip().partition(" ")
            if word == "lost" and (callback := self.leases.get(UUID(token))):
                try:
                    callback()
                except Exception:  # one job's fault must not keep the others from hearing
                    logger.exception("a job cannot be stopped")
        logger.warning("the heartbeat process has ended and is started anew", code=process.wait())
        while True:
            time.sleep(RESTART_S)
            try:
                with self._lock:
                    return self._start()
            except OSError:  # no memory, say: without a heartbeat every lease runs out
                logger.exception("the heartbeat process cannot be started")

    def _tick(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            stalled_s = 0.0
            try:
                stalled_s = max((probe() for probe in tuple(self._probes)), default=0.0)
                memory.look()
            except Exception:  # a full disk, say, is no reason to end this process
                logger.exception("what is watched cannot be seen")
            with self._lock:
                self._tell(f"alive {stalled_s:.1f}")
            time.sleep(TICK_S)

    def _hear(self, process: subprocess.Popen[str]) -> None:
        """End a process that is silent: on a thread that takes no lock, for whoever speaks to it may wait for ever."""
        while process.poll() is None:
            if time.monotonic() - self._heard > SILENCE_S:
                logger.warning("the heartbeat process is silent and is ended")
                process.kill()
            time.sleep(TICK_S)


class Memory:
    """The memory of this process, for Prometheus; what was freed goes back to the system from time to time."""

    def __init__(self) -> None:
        self.name = ""  # known once this process is ready
        self._process = psutil.Process()
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        self._trimmed_at = time.monotonic()

    def look(self) -> None:
        if self._trim and time.monotonic() - self._trimmed_at > TRIM_S:
            self._trimmed_at = time.monotonic()
            self._trim(0)
        if self.name:
            RESIDENT.labels(self.name).set(self._process.memory_info().rss)


memory = Memory()
heartbeat = Heartbeat()


class Consumption:
    """Whether this worker takes messages from each of its queues while some wait there and it has room for them."""

    def __init__(self, queues: Collection[str], threads: int) -> None:
        self._threads = threads
        self._looked_at = time.monotonic()
        self._moved_at = dict.fromkeys(queues, self._looked_at)
        self._waiting = dict.fromkeys(queues, 0)

    def moved(self, *, request: Any, **_: Any) -> None:
        """Note that a message was taken (Celery's `task_received`)."""
        if (queue := request.delivery_info.get("routing_key")) in self._moved_at:
            self._moved_at[queue] = time.monotonic()

    def stalled_s(self) -> float:
        """How long messages of a queue have waited for this worker alone: it has room, and none was taken."""
        now = time.monotonic()
        if now - self._looked_at > LOOK_S:
            self._looked_at = now
            self._look(now)
        stalled_s = now - min(self._moved_at.values(), default=now)
        return stalled_s if stalled_s > 2 * LOOK_S else 0.0

    def _look(self, now: float) -> None:
        held = messages_held()
        room = sum(held.values()) < self._threads
        for queue in self._moved_at:
            before, self._waiting[queue] = self._waiting[queue], self._count(queue)
            full = not room or held[queue] >= POOLS.get(queue, self._threads)
            if full or not self._waiting[queue] or self._waiting[queue] < before:
                self._moved_at[queue] = now

    def _count(self, queue: str) -> int:
        try:
            return int(redis.broker().llen(queue))
        except RedisError:
            return 0


@worker_ready.connect
def watch_worker(sender: Any, **_: Any) -> None:
    memory.name = str(sender.hostname)
    consumption = Consumption([queue.name for queue in sender.task_consumer.queues], sender.pool.limit)
    task_received.connect(consumption.moved, weak=False)
    heartbeat.watch(consumption.stalled_s)


@beat_init.connect
def watch_beat(sender: Any, **_: Any) -> None:
    memory.name = "beat"
    heartbeat.watch(lambda: time.monotonic() - sender.scheduler.ticked_at)
