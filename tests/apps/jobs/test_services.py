import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone
from structlog.testing import capture_logs

from apps.common import redis
from apps.common.errors import Conflict, TooManyRequests
from apps.jobs import dispatch, services, streams, tasks
from apps.jobs.metrics import INTERRUPTIONS
from apps.jobs.models import Job, State
from apps.jobs.selectors import job_list_for_user
from apps.users.models import User
from lyo import env
from tests.helpers import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the jobs whose message went out; the broker's part is played by a list."""
    ids: list[str] = []
    monkeypatch.setattr(dispatch, "send", lambda jobs: ids.extend(str(job_id) for _, job_id in jobs) or True)
    return ids


@pytest.fixture
def learner() -> User:
    return User.objects.create_user("ada", "ada@example.org", "correct-horse-9-battery")


def make(**fields: object) -> Job:
    return services.job_create(**{"kind": "embed", "request": {"input": ["a"]}, **fields})


def claim(job: Job, worker: str = "w1") -> services.Claim:
    taken = services.job_claim(job_id=job.id, worker=worker)
    assert taken is not None
    return taken


def in_threads(count: int, call: Callable[[], object]) -> list[object]:
    """What `call` returned or raised on each of `count` threads that start together."""
    barrier, results = threading.Barrier(count), []

    def run() -> None:
        barrier.wait()
        try:
            results.append(call())
        except Exception as error:
            results.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return results


def test_the_message_goes_out_only_when_the_transaction_commits(sent: list[str]) -> None:
    with transaction.atomic():
        job = make()
        assert sent == []
    assert sent == [str(job.id)]
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        make()
        raise ZeroDivisionError
    assert sent == [str(job.id)]
    assert Job.objects.count() == 1


def test_of_many_claims_exactly_one_wins(sent: list[str]) -> None:
    job = make()
    claims = in_threads(16, lambda: services.job_claim(job_id=job.id, worker="w"))
    won = [taken for taken in claims if taken is not None]
    assert len(won) == 1
    job.refresh_from_db()
    assert (job.state, job.attempt, job.worker, job.lease_token) == (State.RUNNING, 1, "w", won[0].token)


def test_a_presumed_dead_worker_cannot_overwrite_its_successor(sent: list[str]) -> None:
    job = make()
    first = claim(job, "old")
    lose_lease(worker_died=False)
    second = claim(job, "new")
    with pytest.raises(services.LeaseLost):
        services.job_finish(claim=first, state=State.SUCCEEDED, result={"text": "stale"})
    services.job_finish(claim=second, state=State.SUCCEEDED, result={"text": "fresh"})
    job.refresh_from_db()
    assert (job.state, job.result, job.attempt) == (State.SUCCEEDED, {"text": "fresh"}, 2)


def lose_lease(worker_died: bool) -> None:
    """Let the leases of all running jobs run out, as the heartbeat process or its absence does."""
    Job.objects.filter(state=State.RUNNING).update(
        lease_expires_at=timezone.now() - timedelta(seconds=1), worker_died=worker_died
    )
    assert until(services.job_requeue_expired) == 1  # not before Postgres has been up for the length of a lease


def test_a_job_whose_workers_died_too_often_is_errored_and_not_sent_again(sent: list[str]) -> None:
    job = make()
    for _ in range(env.JOB_ATTEMPTS):
        claim(job)
        lose_lease(worker_died=True)
    job.refresh_from_db()
    assert (job.state, job.error["code"]) == (State.ERRORED, "worker_lost")
    assert (job.crashes, job.lease_losses, job.attempt) == (env.JOB_ATTEMPTS, 0, env.JOB_ATTEMPTS)
    assert len(sent) == env.JOB_ATTEMPTS  # once at creation, once after each loss but the last


def test_a_lease_that_was_lost_while_nobody_died_is_told_apart_and_charged_nothing(
    sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "LEASE_LOSSES", env.JOB_ATTEMPTS + 2)
    lost, died = (INTERRUPTIONS.labels("embed", reason)._value.get for reason in ("lease_lost", "worker_died"))
    before = lost(), died()
    job = make()
    for losses in range(1, env.JOB_ATTEMPTS + 2):
        claim(job)
        lose_lease(worker_died=False)
        job.refresh_from_db()
        assert (job.state, job.crashes, job.lease_losses) == (State.QUEUED, 0, losses)
    claim(job)
    lose_lease(worker_died=False)
    job.refresh_from_db()
    assert (job.state, job.error["code"], job.crashes) == (State.ERRORED, "lease_lost", 0)
    assert (lost() - before[0], died() - before[1]) == (env.JOB_ATTEMPTS + 2, 0)


@pytest.mark.parametrize(("died", "event"), [(True, "worker died"), (False, "lease lost")])
def test_a_death_and_a_lost_lease_are_told_apart_in_the_log(sent: list[str], died: bool, event: str) -> None:
    job = make()
    claim(job)
    with capture_logs() as logs:
        lose_lease(worker_died=died)
    (line,) = [line for line in logs if line.get("job_id") == str(job.id)]
    assert (line["event"], line["log_level"], line["attempt"]) == (event, "warning", 1)


def test_a_starting_worker_frees_what_its_namesake_held_and_nothing_else(sent: list[str]) -> None:
    mine, others = claim(make(), "generate@a"), claim(make(), "generate@b")
    assert services.job_release(worker="generate@a") == 1
    job = Job.objects.get(id=mine.job.id)
    assert (job.state, job.crashes, job.lease_losses) == (State.QUEUED, 1, 0)
    assert Job.objects.get(id=others.job.id).state == State.RUNNING


def test_a_message_the_broker_did_not_take_is_sent_by_the_sweeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "send", lambda jobs: False)
    job = make()
    sent: list[object] = []
    monkeypatch.setattr(dispatch, "send", lambda jobs: sent.extend(jobs) or True)
    assert services.job_resend() == 1
    assert sent == [("embed", job.id)]
    assert services.job_resend() == 0  # not again before it is due


def test_a_cancelled_job_ends_at_once_and_cannot_be_claimed(sent: list[str]) -> None:
    job = services.job_cancel(job=make())
    assert (job.state, job.result) == (State.CANCELLED, {"text": "", "finish_reason": "cancelled"})
    assert services.job_claim(job_id=job.id, worker="w") is None


def test_cancelling_a_running_job_keeps_what_was_delivered_and_refuses_more(sent: list[str]) -> None:
    taken = claim(make())
    pipe = redis.broker().pipeline()
    streams.append(pipe, taken.job.id, 1, streams.Entry(0, 5, [1, 2], "hello"))
    streams.append(pipe, taken.job.id, 1, streams.Entry(5, 6, [3], "!"))
    assert [offset for offset, _ in pipe.execute()] == [5, 6]
    job = services.job_cancel(job=taken.job)
    assert (job.state, job.result) == (State.CANCELLED, {"text": "hello!", "finish_reason": "cancelled"})
    streams.append(pipe, taken.job.id, 1, streams.Entry(6, 7, [4], "?"))
    assert pipe.execute()[0][0] == streams.SEALED


def test_cancelling_an_ended_job_changes_nothing(sent: list[str]) -> None:
    taken = claim(make())
    services.job_finish(claim=taken, state=State.SUCCEEDED, result={"pong": 1})
    job = services.job_cancel(job=taken.job)
    assert (job.state, job.result) == (State.SUCCEEDED, {"pong": 1})


def test_a_retried_job_starts_from_the_beginning(sent: list[str]) -> None:
    job = make()
    services.job_finish(claim=claim(job), state=State.FAILED, error={"code": "deadline_exceeded", "detail": "y"})
    assert services.job_retry(job=job) is True
    job.refresh_from_db()
    assert (job.state, job.error, job.finished_at, job.attempt) == (State.QUEUED, None, None, 1)
    assert claim(job).job.attempt == 2
    assert services.job_retry(job=job) is False  # it runs


def test_a_queued_job_past_its_deadline_fails_with_the_reason(sent: list[str]) -> None:
    job = make(deadline=timedelta(seconds=-1))
    assert services.job_fail_overdue() == 1
    job.refresh_from_db()
    assert (job.state, job.error["code"]) == (State.FAILED, "deadline_exceeded")


def test_only_ended_jobs_past_their_retention_are_deleted(sent: list[str]) -> None:
    old, fresh, queued = make(), make(), make()
    for job in (old, fresh):
        services.job_finish(claim=claim(job), state=State.SUCCEEDED)
    Job.objects.filter(id=old.id).update(finished_at=timezone.now() - timedelta(days=env.JOB_RETENTION_DAYS + 1))
    assert services.job_delete_expired() == 1
    assert set(Job.objects.values_list("id", flat=True)) == {fresh.id, queued.id}


def test_admission_is_exact_when_many_ask_at_once(sent: list[str], learner: User) -> None:
    def ask() -> Job:
        with transaction.atomic():
            services.job_admit(user=learner, kind="embed")
            return make(user=learner)

    results = in_threads(env.GENERATIONS_AT_ONCE + 6, ask)
    assert sum(isinstance(result, Job) for result in results) == env.GENERATIONS_AT_ONCE
    refused = [result for result in results if not isinstance(result, Job)]
    assert [type(error) for error in refused] == [TooManyRequests] * 6


def test_a_full_queue_refuses_with_the_position_one_would_have_had(
    sent: list[str], learner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "QUEUE_LIMIT", 2)
    make(), make()
    with pytest.raises(TooManyRequests) as refusal, transaction.atomic():
        services.job_admit(user=learner, kind="embed")
    assert refusal.value.extra == {"queue_position": 3}


def user(name: str, **fields: object) -> User:
    return User.objects.create_user(name, f"{name}@example.org", "correct-horse-9-battery", **fields)


def next_of(job: Job) -> Job:
    """What a message of `job` makes a worker do."""
    taken = services.job_claim_next(job_id=job.id, worker="w", token=uuid4())
    assert taken
    return taken.job


def test_users_take_turns_and_who_has_nothing_running_is_next(sent: list[str]) -> None:
    flooder, newcomer = user("flooder"), user("newcomer")
    flood = [make(user=flooder) for _ in range(4)]
    late = [make(user=newcomer) for _ in range(2)]
    assert [job.queue_position for job in job_list_for_user(user=newcomer)] == [4, 2]  # newest first
    order = [next_of(flood[0]) for _ in range(6)]
    assert order == [flood[0], late[0], flood[1], late[1], flood[2], flood[3]]
    assert services.job_claim_next(job_id=flood[0].id, worker="w", token=uuid4()) is None


def test_a_newcomer_waits_for_one_round_of_those_who_were_there(sent: list[str]) -> None:
    flooders = [user(f"flooder{number}") for number in range(3)]
    flood = [[make(user=flooder) for flooder in flooders] for _ in range(4)]

    def served() -> Job:
        token = uuid4()
        taken = services.job_claim_next(job_id=flood[0][0].id, worker="w", token=token)
        assert taken
        services.job_finish(claim=taken, state=State.SUCCEEDED)
        return taken.job

    assert [served() for _ in range(4)] == [*flood[0], flood[1][0]]
    late = make(user=user("newcomer"))
    assert [served() for _ in range(9)] == [*flood[1][1:], flood[2][0], late, *flood[2][1:], *flood[3]]


def test_a_teacher_s_turn_comes_twice_as_often(sent: list[str]) -> None:
    learner, teacher = user("learner"), user("teacher", role="teacher")
    asked = [make(user=learner) for _ in range(3)]
    taught = [make(user=teacher) for _ in range(3)]
    order = [next_of(asked[0]) for _ in range(6)]
    assert order == [taught[0], asked[0], taught[1], taught[2], asked[1], asked[2]]


def test_a_message_claims_no_other_kind_of_job(sent: list[str]) -> None:
    make(kind="evaluate"), make(kind="compare")
    compare = Job.objects.get(kind="compare")
    assert next_of(compare) == compare


def test_many_workers_that_take_turns_at_once_get_different_jobs(sent: list[str]) -> None:
    jobs = [make() for _ in range(8)]
    claims = in_threads(16, lambda: services.job_claim_next(job_id=jobs[0].id, worker="w", token=uuid4()))
    won = [taken.job.id for taken in claims if isinstance(taken, services.Claim)]
    assert sorted(won) == sorted(job.id for job in jobs)
    assert claims.count(None) == 8


def test_a_message_looks_again_while_others_take_all_that_it_sees(
    sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, looked, claim_once = make(), threading.Event(), services._claim

    def claim_and_tell(which: str, **parameters: Any) -> services.Claim | None:
        try:
            return claim_once(which, **parameters)
        finally:
            looked.set()

    def take() -> services.Claim | None:
        try:
            return services.job_claim_next(job_id=first.id, worker="w", token=uuid4())
        finally:
            connection.close()

    monkeypatch.setattr(services, "_claim", claim_and_tell)
    with ThreadPoolExecutor(1) as other, transaction.atomic():
        Job.objects.select_for_update().get(id=first.id)
        message = other.submit(take)
        assert looked.wait(10)
        claim(first)
        second = make()
    taken = message.result(10)
    assert taken and taken.job == second


def admitted(who: User, count: int = 1) -> bool:
    try:
        with transaction.atomic():
            services.job_admit(user=who, kind="embed", count=count)
            [make(user=who) for _ in range(count)]
    except TooManyRequests as refusal:
        return refusal.get_codes() not in ("queue_full", "too_many_at_once")
    return True


def test_forty_accounts_that_flood_a_queue_leave_room_for_a_newcomer(
    sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "QUEUE_LIMIT", 64)
    monkeypatch.setattr(env, "GENERATIONS_AT_ONCE", 8)
    flooders = [user(f"flooder{number}") for number in range(40)]
    for _ in range(8):
        for flooder in flooders:
            admitted(flooder)
    waiting = Job.objects.filter(state=State.QUEUED).count()
    assert 40 <= waiting < 64
    newcomer = user("newcomer")
    assert admitted(newcomer)
    assert job_list_for_user(user=newcomer).get().queue_position == 41  # behind each one's first


def test_learners_cannot_fill_a_queue_against_their_teachers(sent: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "QUEUE_LIMIT", 10)
    results = [admitted(user(f"learner{number}")) for number in range(12)]
    assert results == [True] * 9 + [False] * 3
    assert admitted(user("teacher", role="teacher"))


def test_a_repeated_key_finds_its_job_and_refuses_another_request(sent: list[str], learner: User) -> None:
    job = make(user=learner, idempotency_key="k", fingerprint_of={"a": 1})
    assert services.job_find_repeat(user=learner, idempotency_key="k", request={"a": 1}) == job
    assert services.job_find_repeat(user=learner, idempotency_key="other", request={"a": 1}) is None
    with pytest.raises(Conflict):
        services.job_find_repeat(user=learner, idempotency_key="k", request={"a": 2})


def test_claiming_an_unknown_job_is_nothing() -> None:
    assert services.job_claim(job_id=uuid4(), worker="w") is None


def test_what_was_delivered_before_a_worker_died_outlives_cancel_and_deadline(sent: list[str]) -> None:
    for end, state in ((services.job_cancel, State.CANCELLED), (None, State.FAILED)):
        taken = claim(make(deadline=timedelta(seconds=60)), "dead")
        pipe = redis.broker().pipeline()
        streams.append(pipe, taken.job.id, 1, streams.Entry(0, 5, [1, 2], "hello"))
        pipe.execute()
        services.job_release(worker="dead")
        Job.objects.filter(id=taken.job.id).update(deadline_at=timezone.now() - timedelta(seconds=1))
        if end:
            end(job=taken.job)
        else:
            assert services.job_fail_overdue() == 1
        job = Job.objects.get(id=taken.job.id)
        assert (job.state, job.result["text"]) == (state, "hello")


def test_a_running_job_whose_worker_hangs_fails_well_after_its_deadline(sent: list[str]) -> None:
    taken = claim(make(deadline=timedelta(seconds=-29)))
    assert services.job_fail_overdue() == 0
    Job.objects.update(deadline_at=timezone.now() - timedelta(seconds=31))
    assert services.job_fail_overdue() == 1
    with pytest.raises(services.LeaseLost):
        services.job_finish(claim=taken, state=State.SUCCEEDED)


def test_leases_that_ran_out_while_nobody_looked_get_another_term(sent: list[str]) -> None:
    job = claim(make()).job
    ended = claim(make()).job

    def expire() -> None:
        Job.objects.filter(state=State.RUNNING).update(lease_expires_at=timezone.now() - timedelta(seconds=1))

    expire()
    Job.objects.filter(id=ended.id).update(worker_died=True)
    redis.broker().delete(tasks.SWEPT)
    tasks.sweep()
    job.refresh_from_db()
    ended.refresh_from_db()
    assert (job.state, job.lease_losses) == (State.RUNNING, 0)
    assert job.lease_expires_at > timezone.now()
    assert (ended.state, ended.crashes) == (State.QUEUED, 1)
    expire()
    tasks.sweep()
    job.refresh_from_db()
    assert (job.state, job.lease_losses) == (State.QUEUED, 1)


def test_a_database_that_stood_still_costs_nobody_a_lease(sent: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    claim(make())
    Job.objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    with monkeypatch.context() as patched:
        patched.setattr(services, "STILL_S", 0.0)  # any answer is too late
        assert services.job_requeue_expired() == 0
    assert services.job_requeue_expired() == 1


def test_only_a_crash_is_charged_to_a_job_that_is_handed_back(sent: list[str]) -> None:
    job = make()
    services.job_hand_back(claim=claim(job), crashed=False)
    services.job_hand_back(claim=claim(job), crashed=True)
    job.refresh_from_db()
    assert (job.state, job.attempt, job.crashes, job.lease_losses) == (State.QUEUED, 2, 1, 0)
    assert len(sent) == 2  # at creation and after the crash; who shuts down would take the message itself


def test_who_shuts_down_is_not_sent_what_it_has_handed_back(sent: list[str]) -> None:
    job = make()
    services.job_hand_back(claim=claim(job), crashed=False)
    assert services.job_resend() == 0
    Job.objects.update(resend_at=F("resend_at") - services.SHUTDOWN)
    assert services.job_resend() == 1
    assert sent == [str(job.id)] * 2
