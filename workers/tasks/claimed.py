"""A worker's hold on its jobs: claim, heartbeat, delivery of tokens, and exactly one end for each.

A process beside the worker renews its leases (`apps.jobs.watch`), and one thread, `Delivery`, writes the tokens of all
jobs in one round trip. Both outlive the servers they speak to.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar
from uuid import UUID, uuid4

import structlog
from celery import current_task, shared_task
from celery.signals import worker_init
from django.db import InterfaceError, OperationalError, connection
from redis.exceptions import RedisError

from apps.common import redis
from apps.jobs import services, streams
from apps.jobs.models import State
from apps.jobs.watch import heartbeat
from lyo import env
from workers.protocols import Delta, EngineCrashed, EngineStopped, Refused
from workers.tasks import metrics

logger = structlog.get_logger(__name__)
T = TypeVar("T")

RETRY_S = 0.2
INTERNAL_ERROR = {"code": "internal_error", "detail": "The worker failed; its log says why."}
DRAIN_S = 1.0  # how long the end of a job waits for its last tokens to be delivered


class JobErrored(Exception):
    """Tells Celery, and so Flower, what the row of the job says already: it ended as a bug."""


class JobRun:
    """A claimed job in the hands of a task. `stopped` is set when it is cancelled, taken away, or nobody reads it."""

    def __init__(self, claim: services.Claim) -> None:
        self.claim = claim
        self.id: UUID = claim.job.id
        self.request: dict[str, Any] = claim.job.request
        self.keep = claim.job.keep
        self.entries = streams.claim(self.id, claim.job.attempt)
        self.sent = len(self.entries)
        self.unread_since: float | None = None
        self.stopped = threading.Event()
        self._on_stop: Callable[[], None] = lambda: None
        self._clock = metrics.TokenClock(claim.job.created_at, resumed=claim.job.attempt > 1)

    @property
    def delivered(self) -> tuple[int, ...]:
        """Tokens that an earlier attempt has sent to the client."""
        return tuple(token for entry in self.entries for token in entry.token_ids)

    @property
    def text(self) -> str:
        return "".join(entry.text for entry in self.entries)

    def write(self, delta: Delta) -> None:
        """Hand new tokens to the delivery thread; never blocks."""
        self._clock.tick(len(delta.token_ids))
        start = self.entries[-1].end if self.entries else 0
        logprobs = [asdict(token) for token in delta.logprobs] or None
        self.entries.append(streams.Entry(start, start + len(delta.text), list(delta.token_ids), delta.text, logprobs))
        delivery.put(self)

    def on_stop(self, callback: Callable[[], None]) -> None:
        self._on_stop = callback
        if self.stopped.is_set():
            callback()

    def stop(self, reason: str) -> None:
        if not self.stopped.is_set():
            logger.info("job stopped", job_id=str(self.id), reason=reason)
            self.stopped.set()
            self._on_stop()


class Delivery(threading.Thread):
    """Appends the tokens of all running jobs to their streams. What Redis has lost or not taken is sent again.

    A daemon thread that starts with its first piece of work and never ends.
    """

    def __init__(self) -> None:
        super().__init__(name="delivery", daemon=True)
        self.changed = threading.Condition()
        self.dirty: set[JobRun] = set()

    def put(self, run: JobRun) -> None:
        with self.changed:
            self.dirty.add(run)
            if self.ident is None:
                self.start()
            self.changed.notify()

    def drain(self, run: JobRun) -> None:
        """Wait until all of `run`'s tokens are delivered, or a second."""
        with self.changed:
            self.changed.wait_for(lambda: run.sent == len(run.entries) or run.stopped.is_set(), DRAIN_S)

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: bool(self.dirty))
                batch, self.dirty = self.dirty, set()
            try:
                self._flush(batch)
            except Exception as error:  # whatever it is, the other jobs' tokens must go on
                logger.warning("tokens not delivered, trying again", error=error)
                time.sleep(RETRY_S)
                with self.changed:
                    self.dirty |= {run for run in batch if not run.stopped.is_set()}

    def _flush(self, batch: set[JobRun]) -> None:
        sent: list[tuple[JobRun, int]] = []
        with redis.broker().pipeline(transaction=False) as pipe:
            for run in batch:
                for index in range(run.sent, len(run.entries)):
                    streams.append(pipe, run.id, run.claim.job.attempt, run.entries[index])
                    sent.append((run, index))
            replies = pipe.execute()
        rewound: set[JobRun] = set()
        for (run, index), (offset, read) in zip(sent, replies, strict=True):
            if run in rewound:
                continue
            if offset < 0:
                run.stop("stream sealed" if offset == streams.SEALED else "stream taken over")
            elif offset < run.entries[index].end:  # Redis lost what it had: begin again at what it has
                run.sent = next(i for i, entry in enumerate(run.entries) if entry.end > offset)
                run.entries[run.sent] = run.entries[run.sent].past(offset)
                rewound.add(run)
            else:
                run.sent = index + 1
                self._watch_reader(run, bool(read))
        for run in rewound:
            self.put(run)
        with self.changed:
            self.changed.notify_all()

    def _watch_reader(self, run: JobRun, read: bool) -> None:
        now = time.monotonic()
        if run.keep or read:
            run.unread_since = None
        elif run.unread_since is None:
            run.unread_since = now
        elif now - run.unread_since > env.READER_GRACE_S:
            run.stop("nobody reads")


delivery = Delivery()


def job_task(name: str) -> Callable[[Callable[[JobRun], dict[str, Any]]], Any]:
    """Make a Celery task of a function that takes a claimed job and returns its result.

    The task takes the id of a job, as a sign that one of its kind waits, and claims the one that has its turn.

    `Refused` makes the job FAILED, a crash of the engine sends it back to the queue while it has attempts left, and any
    other exception makes it ERRORED; a stopped job is CANCELLED with what it returns.
    Where another worker has the job, or it has ended, nothing happens.
    """

    def decorate(function: Callable[[JobRun], dict[str, Any]]) -> Any:
        def task(job_id: str) -> None:
            worker = current_task.request.hostname or "direct"
            claim = patiently(lambda: _take(UUID(job_id), worker))
            connection.close()
            if claim is None:
                return
            try:
                with structlog.contextvars.bound_contextvars(job_id=str(claim.job.id), attempt=claim.job.attempt):
                    if _execute(function, claim) == State.ERRORED:
                        raise JobErrored(job_id)
            finally:  # however it ended: a lease that went on being renewed would keep the job from everybody
                heartbeat.release(claim.token)

        task.__doc__ = function.__doc__
        return shared_task(name=name, throws=(JobErrored,))(task)  # expected, so Celery logs no second traceback

    return decorate


def _take(job_id: UUID, worker: str) -> services.Claim | None:
    """Claim what has its turn, under a lease that is held before: each try has one of its own, which ends with it."""
    token = uuid4()
    heartbeat.hold(token)
    claim = None
    try:
        claim = services.job_claim_next(job_id=job_id, worker=worker, token=token)
    finally:
        if claim is None:
            heartbeat.release(token)
    return claim


def _execute(function: Callable[[JobRun], dict[str, Any]], claim: services.Claim) -> State | None:
    """Returns how the job ended, or None where this attempt did not end it."""
    run = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    state = State.SUCCEEDED
    try:
        try:
            run = JobRun(claim)
            heartbeat.on_lost(claim.token, lambda: run.stop("lease lost"))
            result = function(run)
            if run.stopped.is_set() and result.get("finish_reason") in (None, "cancelled"):
                state = State.CANCELLED
            delivery.drain(run)
        except EngineCrashed as crash:
            # Its neighbours in the batch may be to blame, so it is tried again; a shutdown is nobody's fault.
            crashed = not isinstance(crash, EngineStopped)
            if not crashed or claim.job.crashes + 1 < claim.job.max_attempts:
                logger.warning("job handed back", reason=crash)
                patiently(lambda: services.job_hand_back(claim=claim, crashed=crashed))
                return None
            logger.exception("job errored")
            state, error = State.ERRORED, INTERNAL_ERROR
        except Refused as refusal:
            state, error = State.FAILED, {"code": refusal.code, "detail": str(refusal)}
        except RedisError:
            logger.warning("the stream cannot be read; the job will be requeued when its lease expires")
            return None
        except Exception:
            logger.exception("job errored")
            state, error = State.ERRORED, INTERNAL_ERROR
        if error and run and run.entries:
            result = {"text": run.text}
        return _record(claim, state, result, error)
    finally:
        connection.close()


def _record(
    claim: services.Claim, state: State, result: dict[str, Any] | None, error: dict[str, Any] | None
) -> State | None:
    """Write the end to the row; one that Postgres does not take (a NUL, say) must not be tried for ever."""
    try:
        patiently(lambda: services.job_finish(claim=claim, state=state, result=result, error=error))
        metrics.JOBS.labels(claim.job.kind, state).inc()
        logger.info("job ended", kind=claim.job.kind, state=str(state), adapter=(result or {}).get("adapter"))
        return state
    except services.LeaseLost:
        logger.info("job had ended or was taken over")
        return None
    except (OperationalError, InterfaceError):
        raise  # Postgres is away for long: the lease expires, and the next attempt finds the text delivered
    except Exception:
        if state == State.ERRORED:
            raise
        logger.exception("the result cannot be stored")
        return _record(claim, State.ERRORED, None, INTERNAL_ERROR)


def patiently(call: Callable[[], T]) -> T:
    """Call again while Postgres is away, for as long as a lease could last: a restart must not cost an attempt."""
    end = time.monotonic() + 2 * env.LEASE_S
    while True:
        try:
            return call()
        except (OperationalError, InterfaceError):
            connection.close()
            if time.monotonic() > end:
                raise
            time.sleep(RETRY_S)


@worker_init.connect
def release_predecessor(sender: Any, **_: Any) -> None:
    """A worker that starts under a name frees at once what the last one of that name held."""
    if freed := services.job_release(worker=sender.hostname):
        logger.info("freed the jobs of a dead predecessor", jobs=freed)
