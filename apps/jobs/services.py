"""Every transition of a job. Nothing else writes `Job.state`."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog
from django.db import connection, transaction
from django.db.models import DateTimeField, F, Func, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from apps.common.errors import Conflict, TooManyRequests
from apps.common.retention import delete_in_batches
from apps.jobs import dispatch, streams
from apps.jobs.metrics import INTERRUPTIONS
from apps.jobs.models import ACTIVE, TERMINAL, Job, State
from apps.jobs.selectors import queue_share, turns
from apps.users.models import User
from lyo import env

logger = structlog.get_logger(__name__)

RESEND_AFTER = timedelta(seconds=10)
SHUTDOWN = timedelta(seconds=3)  # how long a worker that ends still takes messages
LEASE = timedelta(seconds=env.LEASE_S)
STILL_S = 2.0  # for an answer to a small query: Postgres stood still, and the heartbeats with it
LOOKS, LOOK_S = 50, 0.02  # how often, and how far apart, a message looks for a job while others take what it sees
OVERDUE = timedelta(seconds=30)  # what a running job's own worker has to notice its deadline
BATCH = 500  # rows that one sweep takes
OWN_SHARE = 0.25  # of a queue's free places that a user's waiting jobs may equal in number
ROLE_SHARE = 0.9  # of a queue that learners, or teachers, or staff may fill: the others always find a place
TEXT = ("messages", "input", "text", "stop", "json_schema")  # of a request and its sampling: what somebody wrote
NOT_REFUSED = ("deadline_exceeded", "remote_unavailable", "adapters_full")  # codes of jobs that may be tried again

# kind -> what apps do when such a job ends, in the same transaction; what they return is added to the result.
FinishHook = Callable[[Job], dict[str, Any]]
_finish_hooks: dict[str, list[FinishHook]] = {}


@dataclass(frozen=True)
class Claim:
    """A worker's right to a running job; `token` fences its writes to the row, `job.attempt` those to the stream."""

    job: Job
    token: UUID


class LeaseLost(Exception):
    """The job was cancelled, or given to another worker, while this one held it."""


def finish_hook_register(kind: str, hook: FinishHook) -> None:
    """Have `hook` called after those that were registered before it."""
    _finish_hooks.setdefault(kind, []).append(hook)


# --- creation ---


def job_admit(*, user: User, kind: str, count: int = 1) -> None:
    """Refuse with `TooManyRequests` jobs of a kind that would exceed the user's share or their queue's room.

    The fuller a queue is, the less of it one user may have: a share of what is left (dynamic thresholds; Choudhury and
    Hahne 1998). So those who flood it hold each other back, and whoever has nothing waiting finds a place.
    """
    route = dispatch.ROUTES[kind]
    queue = route.queue
    _one_at_a_time(user)
    mine = Job.objects.filter(user=user, queue=queue, state__in=ACTIVE).count()
    if route.limited and mine + count > env.GENERATIONS_AT_ONCE:
        raise TooManyRequests(
            f"You have {mine} requests under way; at most {env.GENERATIONS_AT_ONCE} run at once.",
            code="too_many_at_once",
            wait=2,
        )
    waiting, alike, own = queue_share(queue=queue, user=user)
    room = min(env.QUEUE_LIMIT - waiting, math.ceil(env.QUEUE_LIMIT * ROLE_SHARE) - alike)
    if count > room or (own and own + count > room * OWN_SHARE):
        yours = f", {own} of them yours" if own else ""
        raise TooManyRequests(
            f"{waiting} requests are waiting already{yours}.",
            code="queue_full",
            wait=10,
            extra={"queue_position": waiting + 1},
        )


def job_find_repeat(*, user: User, idempotency_key: str | None, request: Any) -> Job | None:
    """The job that an earlier request with the same `Idempotency-Key` made; `Conflict` if that request was another."""
    if not idempotency_key:
        return None
    _one_at_a_time(user)
    job = Job.objects.filter(user=user, idempotency_key=idempotency_key).first()
    if job and job.fingerprint != _fingerprint(request):
        raise Conflict("This Idempotency-Key was used for another request.", code="idempotency_key_reused")
    return job


def job_create(
    *,
    kind: str,
    request: dict[str, Any],
    user: User | None = None,
    keep: bool = True,
    deadline: timedelta | None = None,
    idempotency_key: str | None = None,
    fingerprint_of: Any = None,
) -> Job:
    """Queue a job in the caller's transaction; its message goes out when that commits."""
    now = timezone.now()
    job = Job.objects.create(
        kind=kind,
        queue=dispatch.ROUTES[kind].queue,
        user=user,
        request=request,
        keep=keep,
        max_attempts=env.JOB_ATTEMPTS,
        resend_at=now + RESEND_AFTER,
        deadline_at=now + deadline if deadline else None,
        idempotency_key=idempotency_key or None,
        fingerprint=_fingerprint(fingerprint_of) if idempotency_key else "",
    )
    _send_on_commit([job])
    logger.info("job queued", kind=kind, job_id=str(job.id))  # beside the request's id, which the worker does not know
    return job


def _one_at_a_time(user: User) -> None:
    """Let no other request of the user's pass here until the transaction ends: two cannot both take the last place."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"jobs of {user.pk}"])


def _fingerprint(request: Any) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _send_on_commit(jobs: Collection[Job]) -> None:
    def send() -> None:
        if not dispatch.send((job.kind, job.id) for job in jobs):
            Job.objects.filter(id__in=[job.id for job in jobs], state=State.QUEUED).update(resend_at=Now())

    # robust: the job is accepted, so whatever goes wrong here, the caller must not hear of it, and the sweeper sends.
    transaction.on_commit(send, robust=True)


# --- a worker's side ---


def job_claim(*, job_id: UUID, worker: str, token: UUID | None = None) -> Claim | None:
    """Take a queued job for `worker`, or return None if somebody else has it or it has ended.

    One conditional UPDATE decides the race; the token, a new one if none is given, fences every later write.
    """
    return _claim("id = %(id)s AND state = 'queued'", id=job_id, worker=worker, token=token or uuid4())


def job_claim_next(*, job_id: UUID, worker: str, token: UUID) -> Claim | None:
    """Take the job of the kind and queue of `job_id` whose turn it is (`selectors.turns`); None where none waits.

    All that it sees may be in other hands, while a job came after it looked: it looks again, for each message is to
    take a job, and a job that no message is left for waits until it is sent again.
    """
    named = Job.objects.filter(id=job_id)
    alike = Job.objects.filter(state=State.QUEUED, queue__in=named.values("queue"), kind__in=named.values("kind"))
    for _ in range(LOOKS):
        claim = _claim(
            f"""id = (SELECT job.id FROM jobs_job AS named, jobs_job AS job
                        JOIN ({turns("(SELECT queue FROM jobs_job WHERE id = %(id)s)")}) AS turns USING (id)
                       WHERE named.id = %(id)s AND job.kind = named.kind AND job.state = 'queued'
                       ORDER BY place LIMIT 1 FOR UPDATE OF job SKIP LOCKED)""",  # noqa: S608 - as in `turns`
            id=job_id,
            worker=worker,
            token=token,
        )
        if claim or not alike.exists():
            return claim
        time.sleep(LOOK_S)
    return None


def _claim(which: str, *, token: UUID, worker: str, **parameters: Any) -> Claim | None:
    claimed = Job.objects.raw(
        f"""
        UPDATE jobs_job
           SET state = 'running', worker = %(worker)s, lease_token = %(token)s, lease_expires_at = now() + %(lease)s,
               worker_died = false, attempt = attempt + 1, started_at = coalesce(started_at, now()), updated_at = now()
         WHERE {which}
        RETURNING *
        """,  # noqa: S608 - a condition of ours, no input
        {"worker": worker, "token": token, "lease": LEASE, **parameters},
    )
    return next((Claim(job, token) for job in claimed), None)


def job_finish(
    *, claim: Claim, state: State, result: dict[str, Any] | None = None, error: dict[str, Any] | None = None
) -> Job:
    """Record the end of a claimed job and tell its readers; raises `LeaseLost` when it is no longer the claimant's."""
    mine = Job.objects.filter(id=claim.job.id, state=State.RUNNING, lease_token=claim.token)
    if not _end(mine, claim.job, state, result, error):
        raise LeaseLost(str(claim.job.id))
    return claim.job


def job_progress(*, claim: Claim) -> None:
    """A long job has got on: its worker may be lost as often again as at the beginning."""
    mine = Job.objects.filter(id=claim.job.id, state=State.RUNNING, lease_token=claim.token)
    mine.update(max_attempts=F("crashes") + env.JOB_ATTEMPTS, lease_losses=0)


def job_hand_back(*, claim: Claim, crashed: bool) -> None:
    """Put a claimed job back into the queue, for another worker to continue.

    Where the engine crashed with it, that counts. Else its worker shuts down and would take the message itself, so the
    sweeper sends it when the worker is gone.
    """
    mine = Job.objects.filter(id=claim.job.id, state=State.RUNNING, lease_token=claim.token)
    if not crashed:
        mine.update(**{**_queued_again(), "resend_at": Now() + SHUTDOWN})
    elif mine.update(**_queued_again(), crashes=F("crashes") + 1):
        _send_on_commit([claim.job])


def job_release(*, worker: str) -> int:
    """Requeue what a dead predecessor of the same name held, without waiting for its leases to expire."""
    held = Job.objects.filter(state=State.RUNNING, worker=worker)
    held.update(worker_died=True)
    return _requeue(held)


# --- anybody's side ---


def job_cancel(*, job: Job) -> Job:
    """End a job that has not ended; what was generated so far is kept as its result. Ended jobs stay as they are."""
    text = streams.seal(job.id)  # before the row ends, so that no reader sees more than is stored
    result = {"text": text, "finish_reason": "cancelled"}
    _end(Job.objects.filter(id=job.id, state__in=ACTIVE), job, State.CANCELLED, result)
    job.refresh_from_db()
    return job


@transaction.atomic
def job_retry(*, job: Job) -> bool:
    """Queue a failed, errored or cancelled job again, from the beginning; False if it is in another state, or was
    refused, so that nothing is kept of what it was asked."""
    now = timezone.now()
    ended = Job.objects.filter(id=job.id, state__in=(State.FAILED, State.ERRORED, State.CANCELLED))
    again = ended.exclude(request__has_key="removed").update(
        state=State.QUEUED,
        result=None,
        error=None,
        started_at=None,
        finished_at=None,
        keep=True,
        crashes=0,
        lease_losses=0,
        max_attempts=env.JOB_ATTEMPTS,
        deadline_at=now + timedelta(seconds=env.JOB_DEADLINE_S) if job.deadline_at else None,
        resend_at=now + RESEND_AFTER,
    )
    if again:
        streams.delete(job.id)
        _send_on_commit([job])
    return bool(again)


def job_erase(user: User) -> None:
    """Remove all of a user's jobs, ending those under way."""
    jobs_erase(jobs=Job.objects.filter(user=user))


def jobs_erase(*, jobs: QuerySet[Job]) -> None:
    """Delete jobs with their streams. Those under way are cancelled, and their workers write no more."""
    for job in jobs.filter(state__in=ACTIVE):
        job_cancel(job=job)
    ids = list(jobs.order_by().values_list("id", flat=True))
    for start in range(0, len(ids), BATCH):
        streams.erase(ids[start : start + BATCH])
        Job.objects.filter(id__in=ids[start : start + BATCH]).delete()


def job_forget(*, user_id: UUID) -> int:
    """Take a user out of the requests of nobody's jobs that name several as `users`; returns how many did."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE jobs_job SET request = jsonb_set(request, '{users}', (request -> 'users') - %s) "
            "WHERE user_id IS NULL AND kind IN ('score_feed', 'foresee_feed') AND request -> 'users' ? %s",
            [str(user_id), str(user_id)],
        )
        return cursor.rowcount


# --- the sweeper's side ---


def job_requeue_expired() -> int:
    """Give the jobs of dead or silent workers to others, or up; returns how many.

    While Postgres was down or stood still nobody could renew a lease: what expired then is left alone until the
    workers had time to.
    """
    expired = Job.objects.filter(state=State.RUNNING, lease_expires_at__lt=Now())
    up_since = Func(function="pg_postmaster_start_time", output_field=DateTimeField())
    lost = expired.alias(up_since=up_since).filter(Q(worker_died=True) | Q(up_since__lt=Now() - LEASE))
    asked_at = time.monotonic()
    ids = list(lost.values_list("id", flat=True)[:BATCH])
    if not ids or time.monotonic() - asked_at > STILL_S:
        return 0
    return _requeue(lost.filter(id__in=ids))


def leases_prolong() -> int:
    """Give leases that have run out another term, because nobody has looked for longer than one lasts; returns how
    many.

    The database, or all of the machine, may have stood still. A worker that was ended has said so, and is not meant.
    """
    expired = Job.objects.filter(state=State.RUNNING, lease_expires_at__lt=Now(), worker_died=False)
    return expired.update(lease_expires_at=Now() + LEASE)


@transaction.atomic
def job_resend() -> int:
    """Send again the messages of jobs that nobody has claimed in time, each time waiting twice as long."""
    now = timezone.now()
    late = list(Job.objects.filter(state=State.QUEUED, resend_at__lte=now).select_for_update(skip_locked=True)[:BATCH])
    for job in late:
        job.resend_at = now + max(RESEND_AFTER, min(now - job.created_at, timedelta(minutes=5)))
    Job.objects.bulk_update(late, ["resend_at"])
    _send_on_commit(late)
    return len(late)


def job_fail_overdue() -> int:
    """End jobs whose deadline has passed: those that wait, and those whose worker should have ended them long ago."""
    overdue = Job.objects.filter(
        Q(state=State.QUEUED, deadline_at__lt=Now()) | Q(state=State.RUNNING, deadline_at__lt=Now() - OVERDUE)
    )
    error = {"code": "deadline_exceeded", "detail": "The deadline passed before the job was done."}
    return sum(
        _end(overdue.filter(id=job.id), job, State.FAILED, {"text": streams.seal(job.id)}, error)
        for job in overdue[:BATCH]
    )


def job_delete_expired() -> int:
    """Delete ended jobs after their retention."""
    limit = timezone.now() - timedelta(days=env.JOB_RETENTION_DAYS)
    return delete_in_batches(Job.objects.filter(finished_at__lt=limit, state__in=TERMINAL))


def keys_forget() -> int:
    """Forget the idempotency keys of jobs that ended some time ago: no client repeats such a request."""
    return _change("idempotency_key = NULL, fingerprint = ''", "idempotency_key IS NOT NULL", env.IDEMPOTENCY_DAYS)


def large_results_shrink() -> int:
    """Take out of the large results of jobs that ended some time ago what is large, such as vectors, but for the text.

    The names of what was taken out stand in `removed`.
    """
    large, part = env.LARGE_RESULT_KB * 1024, LARGE_PART
    return _change(SHRUNK, SHRINKS, env.LARGE_RESULT_DAYS, large=large, part=part)


LARGE_PART = 4096  # characters of a part of a result that is kept
SHRINKS = "pg_column_size(result) > %(large)s AND NOT result ? 'removed'"
SHRUNK = """
result = (
    SELECT coalesce(jsonb_object_agg(key, value) FILTER (WHERE key = 'text' OR length(value::text) <= %(part)s), '{}')
        || jsonb_build_object('removed', coalesce(
               jsonb_agg(key) FILTER (WHERE key <> 'text' AND length(value::text) > %(part)s), '[]'))
    FROM jsonb_each(result)
)
"""
CHANGE = """
UPDATE jobs_job SET {change} WHERE id IN (
    SELECT id FROM jobs_job WHERE finished_at < %(limit)s AND state NOT IN ('queued', 'running') AND {condition}
    LIMIT %(batch)s FOR UPDATE SKIP LOCKED
)
"""


def _change(change: str, condition: str, days: int, **values: Any) -> int:
    """Update jobs that ended so many days ago, some hundred by a statement; returns how many changed."""
    values |= {"limit": timezone.now() - timedelta(days=days), "batch": BATCH}
    count = 0
    with connection.cursor() as cursor:
        while True:
            cursor.execute(CHANGE.format(change=change, condition=condition), values)
            if not cursor.rowcount:
                return count
            count += cursor.rowcount


def _without_text(request: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the request of a job that was refused: nothing that somebody wrote."""
    sampling = request.get("sampling", {})
    removed = [name for name in TEXT if request.get(name) or sampling.get(name)]
    kept = {name: value for name, value in request.items() if name not in removed}
    if sampling:
        kept["sampling"] = {name: value for name, value in sampling.items() if name not in removed}
    return {**kept, "removed": removed} if removed else request


def _queued_again() -> dict[str, Any]:
    """The fields of a running job that goes back to the queue."""
    resend_at = timezone.now() + RESEND_AFTER
    lease = {"lease_token": None, "lease_expires_at": None, "worker_died": False}
    return {"state": State.QUEUED, **lease, "resend_at": resend_at}


def _requeue(lost: QuerySet[Job]) -> int:
    """Count what befell each job, and send it again or, where that happened too often, end it."""
    with transaction.atomic():
        jobs = list(lost.select_for_update(skip_locked=True)[:BATCH])
        for job in jobs:
            if job.worker_died:
                job.crashes += 1
            else:
                job.lease_losses += 1
        Job.objects.bulk_update(jobs, ["crashes", "lease_losses"])
        again = [job for job in jobs if not _given_up(job)]
        Job.objects.filter(id__in=[job.id for job in again]).update(**_queued_again())
        _send_on_commit(again)
    for job in jobs:
        what = "worker died" if job.worker_died else "lease lost"
        logger.warning(what, job_id=str(job.id), kind=job.kind, worker=job.worker, attempt=job.attempt)
        INTERRUPTIONS.labels(job.kind, what.replace(" ", "_")).inc()
        if error := _given_up(job):
            mine = Job.objects.filter(id=job.id, state=State.RUNNING, lease_token=job.lease_token)
            _end(mine, job, State.ERRORED, {"text": streams.seal(job.id)}, error)
    return len(jobs)


def _given_up(job: Job) -> dict[str, str] | None:
    """Why a job is not tried again, or None where it is."""
    if job.crashes >= job.max_attempts:
        return {"code": "worker_lost", "detail": f"Its worker died {job.crashes} times; it is not tried again."}
    if job.lease_losses >= env.LEASE_LOSSES:
        return {
            "code": "lease_lost",
            "detail": f"Its workers fell silent {job.lease_losses} times; it is not tried again.",
        }
    return None


def _end(
    rows: QuerySet[Job],
    job: Job,
    state: State,
    result: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
) -> bool:
    """Move `job`, if it is still among `rows`, to a terminal state, with its apps' hooks; True if it moved."""
    hooks = _finish_hooks.get(job.kind, [])
    no_lease = {"lease_token": None, "lease_expires_at": None, "worker_died": False}
    with transaction.atomic() if hooks else nullcontext():
        if not rows.update(state=state, result=result, error=error, **no_lease, finished_at=Now(), updated_at=Now()):
            return False
        job.state, job.result, job.error = state, result, error
        added = {name: value for hook in hooks for name, value in hook(job).items()}
        if state == State.FAILED and error and error["code"] not in NOT_REFUSED:
            Job.objects.filter(id=job.id).update(request=_without_text(job.request))
        if added:
            job.result = {**(result or {}), **added}
            Job.objects.filter(id=job.id).update(result=job.result)
    transaction.on_commit(lambda: streams.end(job.id))
    return True
