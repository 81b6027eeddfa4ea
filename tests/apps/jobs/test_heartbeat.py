"""A lease lasts as long as its worker lives: a busy interpreter is no death, a frozen or stuck one is."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from apps.jobs import dispatch, services, watch
from apps.jobs.models import Job
from lyo import env
from tests.helpers import until

pytestmark = pytest.mark.django_db(transaction=True)

LEASE_S = 1.0
SETTINGS = {"LYO_LEASE_S": str(LEASE_S), "LYO_HEARTBEAT_S": "0.2"}

# A worker as far as its heartbeat knows one: it holds a lease, and then does what it is told to.
WORKER = """
import re, subprocess, sys, time
beat = subprocess.Popen([sys.executable, "-m", "apps.jobs.heartbeat"], text=True, start_new_session=True,
                        stdin=subprocess.PIPE, stdout=sys.stdout)
beat.stdin.write(sys.argv[1] + "\\nhold " + sys.argv[2] + "\\nalive 0\\n")
beat.stdin.flush()
print(beat.pid, flush=True)
while True:
    exec(sys.argv[3])
"""
KEEP_THE_LOCK = 're.match("(a+)+$", "a" * 60 + "b")'  # for years: a match never lets other threads run
REST = "time.sleep(60)"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(dispatch, "send", lambda jobs: True)
    return services.job_create(kind="embed", request={"input": ["a"]})


Worker = subprocess.Popen[str]


@pytest.fixture
def start(job: Job) -> Iterator[Callable[..., Worker]]:
    """Start a worker that has claimed `job`."""
    workers: list[Worker] = []

    def begin(action: str, **settings: str) -> Worker:
        claim = services.job_claim(job_id=job.id, worker="w")
        assert claim
        Job.objects.update(lease_expires_at=timezone.now())  # the first beat makes it last
        parameters = connection.get_connection_params()
        database = json.dumps({name: parameters[name] for name in ("host", "port", "dbname", "user", "password")})
        workers.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, database, str(claim.token), action],
                env={**os.environ, **SETTINGS, **settings},
                cwd=env.BASE_DIR,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()
        worker.wait()


def lease(job: Job) -> datetime:
    job.refresh_from_db()
    assert job.lease_expires_at
    return job.lease_expires_at


def beaten_for(job: Job, seconds: float) -> bool:
    """Whether the lease was renewed that long after now."""
    return lease(job) > timezone.now() + timedelta(seconds=seconds)


def test_a_worker_that_keeps_its_interpreter_s_lock_keeps_its_lease(job: Job, start: Callable[..., Worker]) -> None:
    start(KEEP_THE_LOCK)
    begun = lease(job)
    until(lambda: lease(job) > begun + timedelta(seconds=3 * LEASE_S))
    assert not job.worker_died


def test_a_killed_worker_s_jobs_are_free_before_the_lease_runs_out(job: Job, start: Callable[..., Worker]) -> None:
    worker = start(REST, LYO_LEASE_S="60")
    until(lambda: beaten_for(job, 30))
    worker.kill()
    until(lambda: services.job_requeue_expired() == 1)
    job.refresh_from_db()
    assert (job.state, job.crashes, job.lease_losses) == ("queued", 1, 0)


def test_a_frozen_worker_loses_its_lease_and_hears_of_it_when_it_goes_on(
    job: Job, start: Callable[..., Worker]
) -> None:
    worker = start(REST)
    begun = lease(job)
    until(lambda: lease(job) > begun)
    os.kill(worker.pid, signal.SIGSTOP)
    until(lambda: services.job_requeue_expired() == 1)
    job.refresh_from_db()
    assert (job.state, job.crashes, job.lease_losses) == ("queued", 0, 1)
    os.kill(worker.pid, signal.SIGCONT)
    assert worker.stdout
    assert next(line for line in worker.stdout if line.startswith("lost"))
    assert worker.poll() is None


def test_a_worker_that_stands_still_past_the_bound_is_ended(job: Job, start: Callable[..., Worker]) -> None:
    worker = start(KEEP_THE_LOCK, LYO_STALL_S="2")
    assert worker.wait(timeout=20) == -signal.SIGKILL
    until(lambda: services.job_requeue_expired() == 1)
    job.refresh_from_db()
    assert (job.crashes, job.lease_losses) == (1, 0)


def test_the_process_ends_with_its_worker(job: Job, start: Callable[..., Worker]) -> None:
    worker = start(REST)
    assert worker.stdout
    beat = int(worker.stdout.readline())
    worker.kill()
    until(lambda: not _runs(beat))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_who_speaks_to_a_process_that_hangs_goes_on_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SILENCE_S", 3.0)
    heartbeat = watch.Heartbeat()
    heartbeat.hold(uuid4())
    hung = heartbeat.pid
    assert hung
    os.kill(hung, signal.SIGSTOP)

    def speak() -> None:
        for _ in range(2000):  # more than a pipe takes
            token = uuid4()
            heartbeat.hold(token)
            heartbeat.release(token)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    until(lambda: heartbeat.pid not in (None, hung), 30)
    thread.join(30)
    assert not thread.is_alive()
    monkeypatch.setattr(heartbeat, "_start", lambda: None)
    assert heartbeat.pid
    os.kill(heartbeat.pid, signal.SIGKILL)
