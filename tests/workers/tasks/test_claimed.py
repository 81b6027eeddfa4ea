"""A task ends its job exactly once, whatever its function does and whatever Redis forgets."""

import os
import signal
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from celery.app.trace import build_tracer
from django.utils import timezone
from redis.exceptions import ConnectionError as RedisConnectionError

from apps.common import redis
from apps.jobs import services, streams
from apps.jobs.models import Job, State
from apps.jobs.watch import Heartbeat
from lyo.celery import app
from tests.helpers import until
from workers.protocols import Delta, EngineCrashed, EngineStopped, Refused
from workers.tasks import claimed
from workers.tasks.claimed import JobErrored, JobRun, job_task

pytestmark = pytest.mark.django_db(transaction=True)


def queued(**fields: Any) -> Job:
    return services.job_create(kind="embed", request={"input": ["a"]}, **fields)


def execute(job: Job, function: Callable[[JobRun], dict[str, Any]]) -> Job:
    """Run `function` as a task on this thread, as a worker would."""
    task = job_task(f"test.{uuid4()}")(function)  # Celery keeps the first task of a name
    try:
        task(str(job.id))
        failed = False
    except JobErrored:
        failed = True
    job.refresh_from_db()
    assert failed == (job.state == State.ERRORED)  # as Flower shows it
    return job


def write(run: JobRun, *texts: str) -> None:
    for text in texts:
        run.write(Delta((len(text),), text))


def delivered(run: JobRun) -> bool:
    return run.sent == len(run.entries)


def test_what_the_function_returns_is_the_result() -> None:
    job = execute(queued(), lambda run: {"echo": run.request["input"]})
    assert (job.state, job.result, job.error, job.attempt) == (State.SUCCEEDED, {"echo": ["a"]}, None, 1)


def test_a_refusal_fails_the_job_with_its_code_and_keeps_what_was_said() -> None:
    def refuse(run: JobRun) -> dict[str, Any]:
        write(run, "half ", "an answer")
        raise Refused("deadline_exceeded", "too late")

    job = execute(queued(), refuse)
    assert (job.state, job.error) == (State.FAILED, {"code": "deadline_exceeded", "detail": "too late"})
    assert job.result == {"text": "half an answer"}


@pytest.mark.parametrize("function", [lambda run: 1 / 0, lambda run: {"text": "a\0b"}, lambda run: {"text": object()}])
def test_a_bug_or_a_result_that_cannot_be_stored_errors_the_job_once(function: Callable[[JobRun], Any]) -> None:
    job = execute(queued(), function)
    assert (job.state, job.error, job.result) == (State.ERRORED, claimed.INTERNAL_ERROR, None)


def test_celery_sees_an_errored_job_as_a_failed_task_and_a_failed_one_as_done(caplog: pytest.LogCaptureFixture) -> None:
    """So Flower's failures are the errored jobs. The traceback is logged once, and nothing is tried again."""

    def refuse(run: JobRun) -> dict[str, Any]:
        raise Refused("deadline_exceeded", "too late")

    seen = []
    for function, state in (
        (lambda run: 1 / 0, State.ERRORED),
        (refuse, State.FAILED),
        (lambda run: {}, State.SUCCEEDED),
    ):
        job, name = queued(), f"test.{uuid4()}"
        job_task(name)(function)
        trace = build_tracer(name, app.tasks[name], app=app)  # what a worker runs a task by
        with caplog.at_level("INFO"):
            traced = trace(str(uuid4()), [str(job.id)], {}, {"hostname": "here"})
        job.refresh_from_db()
        assert (job.state, job.attempt) == (state, 1)
        seen.append(traced.info.state if traced.info else "SUCCESS")
    assert seen == ["FAILURE", "SUCCESS", "SUCCESS"]
    told = [record.name for record in caplog.records if record.exc_info]
    assert told == ["workers.tasks.claimed"]


def test_a_worker_that_shuts_down_hands_the_job_to_the_next_which_goes_on_after_what_was_delivered() -> None:
    job = queued()

    def shut_down(run: JobRun) -> dict[str, Any]:
        write(run, "one ", "two ")
        until(lambda: delivered(run))
        raise EngineStopped("bye")

    assert execute(job, shut_down).state == State.QUEUED
    seen: list[tuple[int, ...]] = []

    def go_on(run: JobRun) -> dict[str, Any]:
        seen.append(run.delivered)
        write(run, "three")
        return {"text": run.text}

    assert execute(job, go_on).result == {"text": "one two three"}
    assert seen == [(4, 4)]
    assert job.attempt == 2


def test_a_crash_of_the_engine_is_tried_again_until_the_attempts_are_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lyo.env.JOB_ATTEMPTS", 2)
    job = queued()

    def crash(run: JobRun) -> dict[str, Any]:
        raise EngineCrashed("out of memory")

    assert [execute(job, crash).state for _ in range(2)] == [State.QUEUED, State.ERRORED]
    assert (job.attempt, job.error) == (2, claimed.INTERNAL_ERROR)


def test_a_job_that_was_cancelled_meanwhile_stays_cancelled_and_its_function_is_told() -> None:
    told: list[str] = []

    def be_cancelled(run: JobRun) -> dict[str, Any]:
        run.on_stop(lambda: told.append("stop"))
        write(run, "half")
        until(lambda: delivered(run))
        services.job_cancel(job=Job.objects.get(id=run.id))
        write(run, " more")
        assert run.stopped.wait(5)
        return {"text": run.text}

    job = execute(queued(), be_cancelled)
    assert (job.state, job.result, told) == (
        State.CANCELLED,
        {"text": "half", "finish_reason": "cancelled"},
        ["stop"],
    )


def test_what_redis_lost_is_delivered_again() -> None:
    def lose(run: JobRun) -> dict[str, Any]:
        write(run, "one ", "two ")
        until(lambda: delivered(run))
        streams.delete(run.id)
        write(run, "three")
        until(lambda: delivered(run) and len(streams.entries(run.id)) == 3)
        return {"text": "".join(entry.text for entry in streams.entries(run.id))}

    assert execute(queued(), lose).result == {"text": "one two three"}


def test_an_answer_without_a_reader_is_given_up_and_one_that_is_kept_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lyo.env.READER_GRACE_S", 0.2)

    def talk(run: JobRun) -> dict[str, Any]:
        for _ in range(20):
            write(run, "word ")
            if run.stopped.wait(0.05):
                break
        return {"text": run.text}

    assert execute(queued(keep=False), talk).state == State.CANCELLED
    assert execute(queued(keep=True), talk).state == State.SUCCEEDED


def test_a_job_that_somebody_else_has_is_left_alone() -> None:
    job = queued()
    services.job_claim(job_id=job.id, worker="other")
    assert execute(job, lambda run: {"text": "mine"}).state == State.RUNNING
    assert redis.broker().exists(f"lyo:stream:{job.id}") == 0


@pytest.fixture
def heartbeat(monkeypatch: pytest.MonkeyPatch) -> Heartbeat:
    """One of short leases, in the place of the process's own."""
    monkeypatch.setenv("LYO_LEASE_S", "1")
    monkeypatch.setenv("LYO_HEARTBEAT_S", "0.2")
    monkeypatch.setattr(claimed, "heartbeat", Heartbeat())
    return claimed.heartbeat


def test_a_heartbeat_process_that_dies_is_replaced_and_no_lease_is_lost(heartbeat: Heartbeat) -> None:
    def kill_it(run: JobRun) -> dict[str, Any]:
        killed = heartbeat.pid
        assert killed
        os.kill(killed, signal.SIGKILL)
        until(lambda: heartbeat.pid != killed)
        Job.objects.update(lease_expires_at=timezone.now())
        until(lambda: Job.objects.get().lease_expires_at > timezone.now())
        return {"text": "still mine"}

    job = execute(queued(), kill_it)
    assert (job.state, job.result, job.attempt) == (State.SUCCEEDED, {"text": "still mine"}, 1)


def test_a_job_that_was_taken_away_is_told_to_stop_without_writing_a_token(heartbeat: Heartbeat) -> None:
    def be_robbed(run: JobRun) -> dict[str, Any]:
        Job.objects.update(lease_expires_at=timezone.now())
        until(lambda: Job.objects.get().lease_expires_at > timezone.now())
        Job.objects.update(lease_token=uuid4())
        assert run.stopped.wait(5)
        return {"text": "late"}

    job = execute(queued(), be_robbed)
    assert (job.state, job.result) == (State.RUNNING, None)


def test_a_job_that_redis_fails_is_no_longer_held_so_that_its_lease_expires() -> None:
    def fail(run: JobRun) -> dict[str, Any]:
        raise RedisConnectionError("gone")

    assert execute(queued(), fail).state == State.RUNNING
    assert claimed.heartbeat.leases == {}
