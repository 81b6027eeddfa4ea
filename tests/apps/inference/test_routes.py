"""Routes: who answers whom, how that is changed and taken back, and when that happens by itself."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest
from django.db import IntegrityError, connection
from django.utils import timezone
from rest_framework.exceptions import NotFound

from apps.common.constants import Task
from apps.common.errors import Conflict
from apps.inference import services
from apps.inference.metrics import ANSWERS, THUMBS
from apps.inference.models import Adapter, Outcome, Route, RouteChange
from apps.inference.selectors import adapter_for, adapter_list, canary_test, model_list, routed
from apps.jobs.models import Job, State
from apps.jobs.services import job_claim, job_create, job_finish, job_retry
from apps.users.models import User
from lyo import env
from tests.apps.conftest import PlayedWorker, Run

pytestmark = pytest.mark.django_db

TUTORING = Task.TUTORING
NOBODY = User()


def adapter(suffix: str, **fields: Any) -> Adapter:
    return services.adapter_add(
        **{"suffix": suffix, "digest": uuid4().hex[:16], "base_model": env.MODEL, "base_digest": "b" * 64, **fields}
    )


def promote(made: Adapter, canary_share: float | None = None, subject: str = "", **why: Any) -> Route:
    return services.route_promote(task=TUTORING, subject=subject, adapter=made, canary_share=canary_share, **why)


def rollback(subject: str = "", **why: Any) -> Route:
    return services.route_rollback(task=TUTORING, subject=subject, **why)


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The code of the conflict that a call raises; what it changed is undone."""
    with pytest.raises(Conflict) as caught:
        call(*args, **kwargs)
    return caught.value.get_codes()


def live_name() -> str | None:
    made = adapter_for(task=TUTORING, user=NOBODY)
    return made and made.name


# --- promotion and rollback ---


def test_promotions_nest_and_rollbacks_take_them_back_one_by_one(learner: User) -> None:
    a, b, c = adapter("a"), adapter("b"), adapter("c")
    assert live_name() is None
    for made in (a, b, a):
        promote(made)
        assert live_name() == made.name
    for name in (b.name, a.name):
        rollback()
        assert live_name() == name
    assert refusal(rollback) == "nothing_to_roll_back"
    promote(c, user=learner, reason="better", evaluation_id=uuid4())
    last = RouteChange.objects.first()
    assert (last.action, last.before["live"], last.after["live"]) == ("promote", a.name, c.name)
    assert (last.user, last.reason) == (learner, "better")
    assert [change.action for change in RouteChange.objects.order_by("id")] == [
        *["promote"] * 3,
        *["rollback"] * 2,
        "promote",
    ]


def test_rolling_back_again_and_again_never_leaves_learners_with_the_base_model() -> None:
    a, b = adapter("a"), adapter("b")
    promote(a)
    assert refusal(rollback) == "nothing_to_roll_back"
    promote(b)
    rollback()
    for _ in range(2):
        assert refusal(rollback) == "nothing_to_roll_back"
        assert (live_name(), Route.objects.get().live) == (a.name, a)
    assert [change.action for change in RouteChange.objects.order_by("id")] == ["promote", "promote", "rollback"]


def test_a_subjects_route_goes_back_to_its_tasks_and_not_to_the_base_model() -> None:
    general, math = adapter("general"), adapter("math")
    promote(math, subject="math")
    assert refusal(rollback, subject="math") == "nothing_to_roll_back"
    promote(general)
    assert rollback(subject="math").live is None
    assert adapter_for(task=TUTORING, subject="math", user=NOBODY) == general
    assert refusal(rollback, subject="math") == "nothing_to_roll_back"


@pytest.mark.parametrize("change", ["promote", "rollback", "complete"])
def test_a_route_that_is_not_as_the_caller_believes_is_left_alone(change: str) -> None:
    a, b, c = adapter("a"), adapter("b"), adapter("c")
    promote(a)
    promote(b)
    promote(c, canary_share=0.5)
    calls: dict[str, Callable[..., Route]] = {
        "promote": lambda **kw: promote(c, canary_share=0.7, **kw),
        "rollback": rollback,
        "complete": lambda **kw: services.route_complete(task=TUTORING, **kw),
    }
    for believed in ({"live": a.name}, {"live": None}, {"canary": None}, {"live": b.name, "canary": b.name}):
        assert refusal(calls[change], believed=believed) == "route_changed"
    assert RouteChange.objects.count() == 3
    calls[change](believed={"live": b.name, "canary": c.name})
    assert RouteChange.objects.count() == 4


def test_a_rollback_passes_over_what_cannot_be_served_any_more() -> None:
    a, b, c = adapter("a"), adapter("b"), adapter("c")
    for made in (a, b, c):
        promote(made)
    Adapter.objects.filter(id=b.id).update(erased_at=timezone.now())
    assert rollback().live == a
    assert refusal(rollback) == "nothing_to_roll_back"
    promote(b_again := adapter("b"))
    Adapter.objects.filter(id=a.id).update(erased_at=timezone.now())
    assert refusal(rollback) == "nothing_to_roll_back"
    assert Route.objects.get().live == b_again


def test_a_canary_is_completed_or_ended_and_live_stays_meanwhile() -> None:
    a, b = adapter("a"), adapter("b")
    promote(a)
    started = promote(b, canary_share=0.25).canary_started_at
    assert (Route.objects.get().live, Route.objects.get().canary) == (a, b)
    raised = promote(b, canary_share=0.5)
    assert (raised.canary_share, raised.canary_started_at) == (0.5, started)
    assert refusal(promote, adapter("c")) == refusal(promote, adapter("d"), canary_share=0.1) == "canary_running"
    ended = rollback(reason="no good")
    assert (ended.live, ended.canary, ended.canary_share, ended.canary_started_at) == (a, None, 0.0, None)
    promote(b, canary_share=1.0)
    completed = services.route_complete(task=TUTORING)
    assert (completed.live, completed.canary) == (b, None)
    assert rollback().live == a
    assert RouteChange.objects.filter(action="complete").get().before == {
        "live": a.name,
        "canary": b.name,
        "canary_share": 1.0,
    }


def test_what_cannot_be_done_is_refused_and_changes_nothing() -> None:
    a = adapter("a")
    with pytest.raises(NotFound):
        rollback()
    promote(a)
    assert refusal(promote, a) == "already_live"
    assert refusal(services.route_complete, task=TUTORING) == "no_canary"
    foreign, erased = adapter("x", base_model="another"), adapter("y")
    Adapter.objects.filter(id=erased.id).update(erased_at=timezone.now())
    erased.refresh_from_db()
    assert refusal(promote, foreign) == refusal(promote, erased) == "not_servable"
    b = adapter("b")
    promote(b, canary_share=0.5)
    Adapter.objects.filter(id=b.id).update(erased_at=timezone.now())
    assert refusal(services.route_complete, task=TUTORING) == "not_servable"
    assert RouteChange.objects.count() == 2


def test_postgres_itself_refuses_a_share_without_a_canary() -> None:
    with pytest.raises(IntegrityError, match="route_share_iff_canary"):
        Route.objects.create(task=TUTORING, canary_share=0.5)


@pytest.mark.django_db(transaction=True)
def test_of_changes_at_the_same_time_each_begins_where_the_one_before_ended() -> None:
    made = [adapter(str(number)) for number in range(6)]
    barrier = Barrier(len(made))

    def change(one: Adapter) -> None:
        try:
            barrier.wait()
            promote(one)
        finally:
            connection.close()

    with ThreadPoolExecutor(len(made)) as threads:
        list(threads.map(change, made))
    changes = list(RouteChange.objects.order_by("id"))
    assert {change.after["live"] for change in changes} == {one.name for one in made}
    assert [change.before["live"] for change in changes] == [None, *(c.after["live"] for c in changes[:-1])]
    assert Route.objects.get().live.name == changes[-1].after["live"]


@pytest.mark.django_db(transaction=True)
def test_of_rollbacks_at_the_same_time_each_takes_back_one_promotion() -> None:
    for number in range(3):
        promote(adapter(str(number)))
    barrier = Barrier(4)

    def take_back(_: int) -> str:
        try:
            barrier.wait()
            rollback()
            return "done"
        except Conflict as conflict:
            return conflict.get_codes()
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        ends = sorted(threads.map(take_back, range(4)))
    assert ends == ["done", "done", "nothing_to_roll_back", "nothing_to_roll_back"]
    assert Route.objects.get().live.name.startswith(f"ft:{env.MODEL}:0@")


@pytest.mark.django_db(transaction=True)
def test_of_two_who_roll_back_what_they_both_saw_one_is_told_that_it_is_done() -> None:
    made = [adapter(str(number)) for number in range(3)]
    for one in made:
        promote(one)
    barrier = Barrier(2)

    def take_back(_: int) -> str:
        try:
            barrier.wait()
            rollback(believed={"live": made[2].name})
            return "done"
        except Conflict as conflict:
            return conflict.get_codes()
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(take_back, range(2))) == ["done", "route_changed"]
    assert Route.objects.get().live == made[1]


# --- who answers whom ---


def users(count: int) -> list[User]:
    return [User(username=str(number)) for number in range(count)]


def test_a_share_of_the_users_gets_the_canary_and_keeps_it() -> None:
    a, b, c = adapter("a"), adapter("b"), adapter("c")
    promote(a)
    promote(b, canary_share=0.3)
    people = users(400)
    first = {user.id for user in people if adapter_for(task=TUTORING, user=user) == b}
    assert 90 < len(first) < 150
    assert first == {user.id for user in people if adapter_for(task=TUTORING, user=user) == b}
    promote(b, canary_share=0.6)
    more = {user.id for user in people if adapter_for(task=TUTORING, user=user) == b}
    assert first < more
    rollback()
    promote(c, canary_share=0.3)
    others = {user.id for user in people if adapter_for(task=TUTORING, user=user) == c}
    assert 15 < len(first & others) < 60
    promote(c, canary_share=1.0)
    assert all(adapter_for(task=TUTORING, user=user) == c for user in people[:100])


def test_a_subjects_route_goes_before_its_tasks_and_without_a_live_one_leaves_it_to_that() -> None:
    general, physics, math = adapter("general"), adapter("physics"), adapter("math")
    promote(general)
    promote(physics, subject="physics")
    promote(math, subject="math", canary_share=0.5)

    def answerers(subject: str) -> set[str | None]:
        picked = (adapter_for(task=TUTORING, subject=subject, user=user) for user in users(50))
        return {made and made.name for made in picked}

    assert answerers("") == answerers("biology") == {general.name}
    assert answerers("physics") == {physics.name}
    assert answerers("math") == {general.name, math.name}
    assert adapter_for(task=Task.ENGAGEMENT, subject="math", user=NOBODY) is None


def test_what_is_erased_answers_until_it_is_replaced_and_what_is_of_another_model_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = adapter("a"), adapter("b")
    promote(a)
    promote(b, canary_share=1.0)
    Adapter.objects.filter(id=b.id).update(erased_at=timezone.now())
    assert live_name() == b.name
    monkeypatch.setattr("lyo.env.MODEL", "another")
    assert live_name() is None


def test_the_pick_is_one_query(django_assert_num_queries: Any) -> None:
    promote(adapter("a"))
    promote(adapter("b"), canary_share=0.5, subject="math")
    with django_assert_num_queries(1):
        assert routed(task=TUTORING, subject="math", user=NOBODY)["adapter"]


def test_adapters_have_the_state_that_routes_give_them() -> None:
    a, b, c, d = (adapter(name) for name in "abcd")
    promote(a)
    promote(b, canary_share=0.5)
    Adapter.objects.filter(id=d.id).update(erased_at=timezone.now())
    assert {made.name: made.state for made in adapter_list()} == {
        a.name: "live",
        b.name: "canary",
        c.name: "idle",
        d.name: "erased",
    }
    assert [made.id for made in adapter_list(state="canary")] == [b.id]


# --- outcomes and the sequential test ---


def asked(learner: User, state: State = State.SUCCEEDED, subject: str = "math", **fields: Any) -> Job:
    """A job that a route picked the answerer of, and that has ended."""
    request = {"messages": [], **routed(task=TUTORING, subject=subject, user=learner), **fields}
    job = job_create(kind="chat", user=learner, request=request)
    return ended(job, state)


def ended(job: Job, state: State, code: str = "") -> Job:
    claim = job_claim(job_id=job.id, worker="test")
    assert claim is not None
    error = {"code": code, "detail": "It did not work."} if code else None
    return job_finish(claim=claim, state=state, result={"text": ""}, error=error)


def outcomes(made: Adapter | None, n: int, failed: int = 0, down: int = 0, up: int = 0, **fields: Any) -> None:
    thumbs = [False] * down + [True] * up + [None] * (n - down - up)
    given = {"task": TUTORING, "adapter": made.digest if made else "", "asked_at": timezone.now(), **fields}
    Outcome.objects.bulk_create(
        Outcome(
            job_id=uuid4(),
            voter=uuid4().hex,
            failed=number < failed,
            thumb_up=thumbs[number],
            rated_at=timezone.now(),
            **given,
        )
        for number in range(n)
    )


def test_an_answer_of_a_route_is_noted_once_and_as_it_ended_first(learner: User) -> None:
    made = adapter("a")
    promote(made)
    asked(learner)
    errored = asked(learner, State.ERRORED)
    asked(learner, State.CANCELLED)
    assert sorted(Outcome.objects.values_list("adapter", "failed")) == [(made.digest, f) for f in (False, True)]
    assert job_retry(job=errored)
    ended(errored, State.SUCCEEDED)
    assert Outcome.objects.filter(failed=True).count() == 1
    named = job_create(kind="chat", user=learner, request={"messages": [], "adapter": made.name})
    ended(named, State.ERRORED)
    assert Outcome.objects.count() == 2


OWN_ERRORS = (
    "context_length_exceeded",
    "unsupported_schema",
    "invalid_request",
    "unsupported",
    "deadline_exceeded",
    "remote_unavailable",
    "adapters_full",
    "cancelled",
    "",
)


@pytest.mark.parametrize("code", OWN_ERRORS)
def test_what_fails_by_the_callers_fault_or_the_machines_says_nothing_of_an_adapter(learner: User, code: str) -> None:
    promote(adapter("a"), canary_share=1.0)
    for number in range(10):
        user = User.objects.create_user(str(number), f"{number}@example.org")
        job = job_create(kind="chat", user=user, request={"messages": [], **routed(task=TUTORING, user=user)})
        ended(job, State.FAILED, code)
    assert not Outcome.objects.exists()
    assert services.canaries_watch() == []


@pytest.mark.parametrize(
    ("state", "code"),
    [(State.FAILED, "adapter_refused"), (State.FAILED, "adapter_not_found"), (State.ERRORED, "internal_error")],
)
def test_what_fails_by_the_adapters_fault_counts_against_it(learner: User, state: State, code: str) -> None:
    promote(adapter("a"))
    ended(
        job_create(kind="chat", user=learner, request={"messages": [], **routed(task=TUTORING, user=learner)}),
        state,
        code,
    )
    assert Outcome.objects.get().failed is True


def test_a_thumb_counts_as_it_was_first_given(learner: User) -> None:
    job = asked(learner)
    services.outcome_rate(job_id=job.id, thumb_up=None)
    assert Outcome.objects.get().thumb_up is None
    for thumb_up in (True, False, None):
        services.outcome_rate(job_id=job.id, thumb_up=thumb_up)
        assert Outcome.objects.get().thumb_up is True
    services.outcome_rate(job_id=uuid4(), thumb_up=True)
    assert Outcome.objects.count() == 1


def test_each_person_counts_once_in_each_arm_however_much_they_ask(learner: User) -> None:
    a, b = adapter("a"), adapter("b")
    promote(a)
    for _ in range(3):
        asked(learner, State.ERRORED)
    route = promote(b, canary_share=1.0)
    asked(learner)
    for _ in range(50):
        services.outcome_rate(job_id=asked(learner, State.ERRORED).id, thumb_up=False)
    other = User.objects.create_user("bob", "bob@example.org")
    asked(other, State.ERRORED)
    asked(other)
    test = canary_test(route)
    assert test is not None
    failed, thumbs = test["measures"]["failed"], test["measures"]["thumbs_down"]
    assert failed["live"] == {"n": 1, "bad": 1, "rate": 1.0}
    assert failed["canary"] == {"n": 2, "bad": 1, "rate": 0.5}
    assert thumbs["canary"] == {"n": 1, "bad": 1, "rate": 1.0}
    assert services.canaries_watch() == []
    assert set(Outcome.objects.values_list("voter", flat=True)).isdisjoint({str(learner.id), str(other.id), ""})


def test_whose_outcome_is_not_known_is_not_counted() -> None:
    route = promote(adapter("a"), canary_share=0.5)
    outcomes(route.canary, 50, failed=50)
    Outcome.objects.update(voter="")
    test = canary_test(route)
    assert test is not None and test["measures"]["failed"]["canary"]["n"] == 0


def test_the_test_counts_both_arms_since_the_canary_began() -> None:
    a, b = adapter("a"), adapter("b")
    promote(a)
    before = timezone.now() - timedelta(days=1)
    route = promote(b, canary_share=0.5)
    outcomes(a, 10, failed=1, up=2, down=1)
    outcomes(b, 5, failed=2, subject="math", up=1)
    outcomes(None, 7, failed=7)
    outcomes(a, 4, failed=4, asked_at=before)
    outcomes(b, 3, failed=3, asked_at=before)
    outcomes(b, 3, failed=3, task=Task.ENGAGEMENT)
    test = canary_test(route)
    assert test is not None
    failed, thumbs = test["measures"]["failed"], test["measures"]["thumbs_down"]
    assert failed["live"] == {"n": 10, "bad": 1, "rate": 0.1}
    assert failed["canary"] == {"n": 5, "bad": 2, "rate": 0.4}
    assert thumbs["live"] == {"n": 3, "bad": 1, "rate": 1 / 3}
    assert thumbs["canary"] == {"n": 1, "bad": 0, "rate": 0.0}
    assert (test["live"], test["canary"], failed["threshold"], failed["worse"]) == (a.name, b.name, 40.0, False)
    whole = canary_test(promote(b, canary_share=1.0))
    assert whole is not None and whole["measures"]["failed"]["live"]["n"] == 14
    assert whole["measures"]["failed"]["canary"]["n"] == 5


def test_a_subjects_canary_is_tested_against_who_answers_that_subject_otherwise() -> None:
    a, b = adapter("a"), adapter("b")
    promote(a)
    route = promote(b, canary_share=0.5, subject="math")
    outcomes(a, 6, subject="math")
    outcomes(a, 9, subject="physics")
    outcomes(b, 2, subject="math")
    test = canary_test(route)
    assert test is not None and test["live"] == a.name
    assert [test["measures"]["failed"][arm]["n"] for arm in ("live", "canary")] == [6, 2]


def test_a_canary_that_fails_more_is_rolled_back_and_the_audit_says_why() -> None:
    a, b = adapter("a"), adapter("b")
    promote(a)
    promote(b, canary_share=0.1)
    outcomes(a, 100, failed=1)
    outcomes(b, 10, failed=1)
    assert services.canaries_watch() == []
    outcomes(b, 40, failed=19)
    (route,) = services.canaries_watch()
    assert (route.live, route.canary) == (a, None)
    change = RouteChange.objects.get(action="automatic_rollback")
    assert (change.before["canary"], change.after["canary"], change.user) == (b.name, None, None)
    assert change.reason == "Worse than live beyond the margin: failed."
    assert change.test["measures"]["failed"]["canary"] == {"n": 50, "bad": 20, "rate": 0.4}
    assert change.test["measures"]["failed"]["evidence"] >= 40
    assert services.canaries_watch() == []


def test_a_canary_with_more_thumbs_down_is_rolled_back() -> None:
    a, b = adapter("a"), adapter("b")
    promote(a)
    promote(b, canary_share=0.5)
    outcomes(a, 60, up=55, down=5)
    outcomes(b, 60, up=30, down=30)
    services.canaries_watch()
    assert RouteChange.objects.first().reason == "Worse than live beyond the margin: thumbs_down."


@pytest.mark.parametrize(("answered_before", "failures"), [(0, 4), (2, 5)])
def test_a_broken_canary_for_everybody_on_a_fresh_system_is_rolled_back_after_a_few_people(
    learner: User, answered_before: int, failures: int
) -> None:
    made = adapter("broken")
    outcomes(None, answered_before, asked_at=timezone.now() - timedelta(minutes=1))
    promote(made, canary_share=1.0)
    people = [User.objects.create_user(str(number), f"{number}@example.org") for number in range(failures)]
    for person in people[:-1] * 3:
        asked(person, State.ERRORED)
    assert services.canaries_watch() == []
    asked(people[-1], State.ERRORED)
    assert [route.canary for route in services.canaries_watch()] == [None]
    assert routed(task=TUTORING, user=learner)["adapter"] is None


def test_a_canary_for_everybody_that_fails_as_often_as_live_did_stays() -> None:
    a, b = adapter("a"), adapter("b")
    promote(a)
    outcomes(a, 100, failed=50, asked_at=timezone.now() - timedelta(days=1))
    promote(b, canary_share=1.0)
    outcomes(b, 100, failed=50)
    assert services.canaries_watch() == []


def test_outcomes_are_deleted_after_their_retention_unless_a_canary_is_tested_by_them() -> None:
    now = timezone.now()
    for days in (1, env.JOB_RETENTION_DAYS + 2, env.JOB_RETENTION_DAYS + 9):
        outcomes(None, 1, asked_at=now - timedelta(days=days))
    promote(adapter("a"), canary_share=0.5)
    Route.objects.update(canary_started_at=now - timedelta(days=env.JOB_RETENTION_DAYS + 5))
    assert services.outcome_delete_expired() == 1
    rollback()
    assert services.outcome_delete_expired() == 1
    assert Outcome.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_answers_and_thumbs_are_counted_for_prometheus_by_adapter(learner: User) -> None:
    made = adapter("a")
    promote(made)
    answers = ANSWERS.labels(TUTORING, made.digest, "failed")._value
    thumbs = THUMBS.labels(TUTORING, made.digest, "down")._value
    asked(learner, State.FAILED)
    job = asked(learner)
    services.outcome_rate(job_id=job.id, thumb_up=False)
    services.outcome_rate(job_id=job.id, thumb_up=False)
    assert (answers.get(), thumbs.get()) == (1, 1)


# --- /v1 ---


def test_models_are_the_base_the_tutor_the_embedder_and_adapters_newest_first(
    transactional_db: None, ai: openai.OpenAI, http: httpx.Client
) -> None:
    first, second = adapter("a"), adapter("b")
    erased, foreign = adapter("c"), adapter("d", base_model="another")
    Adapter.objects.filter(id=erased.id).update(erased_at=timezone.now())
    assert [model.id for model in ai.models.list()] == [
        env.MODEL,
        "tutor",
        "all-MiniLM-L6-v2",
        second.name,
        first.name,
    ]
    assert http.get(f"/models/{first.name}").json() == {
        "id": first.name,
        "object": "model",
        "created": int(first.created_at.timestamp()),
        "owned_by": "lyo",
        "max_model_len": env.CONTEXT_TOKENS,
    }
    for unknown in (erased.name, foreign.name, f"ft:other@{first.digest}"):
        assert http.get(f"/models/{unknown}").status_code == 404


def test_the_list_of_models_is_two_queries_and_bounded(
    django_assert_num_queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.inference.selectors.ADAPTERS_LISTED", 3)
    for count in (1, 4):
        for _ in range(count):
            adapter("a")
        with django_assert_num_queries(2):
            model_list()
    assert len(model_list()) == 3 + 3


def test_a_completion_is_given_by_the_model_that_was_named(
    ai: openai.OpenAI, worker: PlayedWorker, learner: User
) -> None:
    live, other = adapter("live"), adapter("other")
    promote(live)
    served: list[Any] = []

    def play(run: Run) -> None:
        served.append(run.request.get("adapter"))
        run.answer(["Yes"])

    worker.play = play
    for name in (env.MODEL, other.name, "tutor"):
        done = ai.chat.completions.create(model=name, messages=[{"role": "user", "content": "?"}])
        assert done.model == name
    assert served == [None, other.name, live.name]
    assert [(outcome.adapter, outcome.task) for outcome in Outcome.objects.all()] == [(live.digest, "tutoring")]


def test_a_repeat_gets_the_first_answer_whatever_the_route_says_by_then(
    http: httpx.Client, worker: PlayedWorker
) -> None:
    worker.play = lambda run: run.answer([str(run.request["adapter"])])
    ask = {"model": "tutor", "messages": [{"role": "user", "content": "?"}]}
    key = {"Idempotency-Key": "k"}
    first = http.post("/chat/completions", json=ask, headers=key).json()
    promote(adapter("a"))
    assert http.post("/chat/completions", json=ask, headers=key).json() == first
