"""What is refused is not kept, and what is kept goes in time, in small pieces; lists are summaries."""

from collections.abc import Iterator
from datetime import timedelta
from secrets import token_hex
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from apps.common import retention
from apps.content.models import Item
from apps.feed.models import Event, EventKey, Foresight, Ranking
from apps.feed.services import events_forget, rankings_forget
from apps.feed.services import keys_forget as event_keys_forget
from apps.inference.models import Outcome
from apps.inference.services import outcome_delete_expired
from apps.jobs import dispatch, services
from apps.jobs.models import Job, State
from apps.search.models import Query
from apps.search.services import queries_forget
from apps.users.models import Token, User
from apps.users.services import expired_delete, token_create
from lyo import env

pytestmark = pytest.mark.django_db

SECRET = "a very private prompt"


@pytest.fixture(autouse=True)
def nobody_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "send", lambda jobs: True)


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", "ada@example.org")


@pytest.fixture
def client(ada: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(ada)
    return client


def ended(
    user: User,
    *,
    state: State = State.SUCCEEDED,
    error: Any = None,
    request: Any = None,
    result: Any = None,
    **more: Any,
) -> Job:
    job = services.job_create(kind="embed", user=user, request=request or {"input": [SECRET]}, **more)
    claim = services.job_claim(job_id=job.id, worker="w")
    assert claim
    services.job_finish(claim=claim, state=state, result=result, error=error)
    job.refresh_from_db()
    return job


def aged(job: Job, **time: float) -> None:
    Job.objects.filter(id=job.id).update(finished_at=timezone.now() - timedelta(**time))


# --- refusals ---


@pytest.mark.parametrize(
    ("request_", "kept"),
    [
        ({"messages": [SECRET], "sampling": {"seed": 1}}, {"sampling": {"seed": 1}, "removed": ["messages"]}),
        (
            {"messages": [SECRET], "sampling": {"seed": 1, "stop": [SECRET], "json_schema": SECRET}},
            {"sampling": {"seed": 1}, "removed": ["messages", "stop", "json_schema"]},
        ),
        ({"input": [SECRET]}, {"removed": ["input"]}),
        ({"text": SECRET}, {"removed": ["text"]}),
        ({"run": "id"}, {"run": "id"}),
    ],
)
def test_a_refused_prompt_is_not_kept(ada: User, request_: dict[str, Any], kept: dict[str, Any]) -> None:
    job = ended(ada, state=State.FAILED, request=request_, error={"code": "context_length_exceeded", "detail": "No."})
    assert job.request == kept
    assert services.job_retry(job=job) is ("run" in kept)


@pytest.mark.parametrize(
    ("state", "code"), [(State.FAILED, "deadline_exceeded"), (State.ERRORED, "internal_error"), (State.SUCCEEDED, None)]
)
def test_what_was_not_refused_can_be_tried_again(ada: User, state: State, code: str | None) -> None:
    job = ended(ada, state=state, error={"code": code, "detail": ""} if code else None)
    assert job.request == {"input": [SECRET]}
    assert services.job_retry(job=job) is (code is not None)


# --- retention ---


def test_a_job_forgets_its_key_a_day_after_its_end(ada: User) -> None:
    old, new = (ended(ada, idempotency_key=key, fingerprint_of={"a": 1}) for key in ("old", "new"))
    running = services.job_create(kind="embed", user=ada, request={}, idempotency_key="running", fingerprint_of={})
    aged(old, days=env.IDEMPOTENCY_DAYS, seconds=1)
    assert services.keys_forget() == 1
    keys = dict(Job.objects.values_list("id", "idempotency_key"))
    assert keys == {old.id: None, new.id: "new", running.id: "running"}
    old.refresh_from_db()
    assert old.fingerprint == ""


def test_a_large_result_loses_its_large_parts_after_some_days_and_keeps_its_text(ada: User) -> None:
    large = {"vectors": [token_hex(400) for _ in range(500)], "tokens": 7, "text": "t" * 200_000}
    small = {"vectors": ["x" * 5000]}
    jobs = [ended(ada, result=result) for result in (large, large, small)]
    for job in (jobs[0], jobs[2]):
        aged(job, days=env.LARGE_RESULT_DAYS, seconds=1)
    assert services.large_results_shrink() == 1
    assert services.large_results_shrink() == 0
    results = [Job.objects.get(id=job.id).result for job in jobs]
    assert results == [{"tokens": 7, "text": "t" * 200_000, "removed": ["vectors"]}, large, small]


def test_everything_that_has_a_retention_goes_after_it_and_not_before(ada: User) -> None:
    now = timezone.now()
    item = Item.objects.create(title="Halves", text="Halves")
    for late in (timedelta(seconds=30), timedelta(seconds=-30)):

        def before(days: int, late: timedelta = late) -> Any:
            return now - timedelta(days=days) + late

        Event.objects.bulk_create([Event(user=ada, item=item, type="click", at=before(env.EVENT_DAYS))])
        EventKey.objects.create(user=ada, client_id=str(late), at=before(env.EVENT_KEY_DAYS))
        Query.objects.create(user=ada, text="q", results=1, at=before(env.QUERY_DAYS))
        Ranking.objects.create(
            user=ada, number=late.seconds, origin="scored", entries=[], until=now, made_at=before(env.RANKING_DAYS)
        )
        Outcome.objects.create(
            job_id=f"00000000-0000-0000-0000-{late.seconds:012d}",
            task="tutoring",
            failed=False,
            asked_at=before(env.JOB_RETENTION_DAYS),
        )
        token = token_create(user=ada)[0]
        Token.objects.filter(pk=token.pk).update(expiry=now + late)
        Session.objects.create(session_key=str(late.seconds), session_data="", expire_date=now + late)
        aged(ended(ada), days=env.JOB_RETENTION_DAYS, seconds=-late.total_seconds())
    Foresight.objects.create(user=ada, adapter="a@1", values={}, made_at=now - timedelta(days=env.RANKING_DAYS + 1))
    forgotten = [
        errand()
        for errand in (
            events_forget,
            event_keys_forget,
            queries_forget,
            rankings_forget,
            outcome_delete_expired,
            expired_delete,
            services.job_delete_expired,
        )
    ]
    assert forgotten == [1, 1, 1, 2, 1, 2, 1]
    left = (Event, EventKey, Query, Ranking, Outcome, Token, Session, Job)
    assert [model._default_manager.count() for model in left] == [1] * len(left)


@pytest.fixture
def batches_of_three(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(services, "BATCH", 3)
    monkeypatch.setattr(retention, "BATCH", 3)
    yield


def test_a_statement_deletes_or_changes_some_rows_only(ada: User, batches_of_three: None) -> None:
    item = Item.objects.create(title="Halves", text="Halves")
    long_ago = timezone.now() - timedelta(days=3000)
    Event.objects.bulk_create([Event(user=ada, item=item, type="click", at=long_ago) for _ in range(7)])
    Query.objects.bulk_create([Query(user=ada, text="q", results=1, at=long_ago) for _ in range(7)])
    for number in range(7):
        ended(ada, idempotency_key=str(number), fingerprint_of={})
    Job.objects.update(finished_at=long_ago)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert [services.keys_forget(), events_forget(), queries_forget(), services.job_delete_expired()] == [7] * 4
    sql = [query["sql"] for query in queries]
    for table, count in (("feed_event", 3), ("search_query", 3), ("jobs_job", 3)):
        assert sum(one.startswith(f'DELETE FROM "{table}"') for one in sql) == count
    assert sum("UPDATE jobs_job SET idempotency_key" in one for one in sql) == 4


# --- lists ---


def test_the_list_of_jobs_has_no_requests_and_no_results(client: APIClient, ada: User) -> None:
    job = ended(ada, result={"text": "x", "vectors": ["x"], "logprobs": [1]})
    (row,) = client.get("/api/v1/jobs").json()["results"]
    whole = client.get(f"/api/v1/jobs/{job.id}").json()
    assert whole["result"] == {"text": "x"}
    assert row == {name: value for name, value in whole.items() if name != "result"}


def test_no_list_has_what_may_be_large(client: APIClient, ada: User) -> None:
    """The rows of lists, by what only one row's own page has."""
    schema = APIClient().get("/api/schema/", HTTP_ACCEPT="application/vnd.oai.openapi+json").json()
    parts = schema["components"]["schemas"]

    def rows(path: str) -> set[str]:
        (answer,) = schema["paths"][path]["get"]["responses"]["200"]["content"].values()
        page = parts[answer["schema"]["$ref"].rpartition("/")[2]]["properties"]
        listed = page["results" if "results" in page else "data"]["items"]["$ref"]
        return set(parts[listed.rpartition("/")[2]]["properties"])

    large = {"request", "result", "report", "licence", "body", "content", "original", "mixture"}
    lists = [
        "/api/v1/jobs",
        "/api/v1/tutor/conversations",
        "/api/v1/training/evaluations",
        "/api/v1/training/adapters",
        "/api/v1/training/examples",
        "/api/v1/training/comparisons",
        "/api/v1/training/dataset-versions",
        "/api/v1/content/items",
        "/api/v1/content/courses",
        "/v1/fine_tuning/jobs",
        "/v1/files",
    ]
    known = set(schema["paths"])
    assert known >= set(lists)
    found = {path: rows(path) & large for path in lists}
    assert found == {path: {"licence"} if path == "/api/v1/content/items" else set() for path in lists}  # a short one
