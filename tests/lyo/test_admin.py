"""The staff's desk: lists that stay cheap, actions that go through the services, and figures that are right."""

import json
import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.shortcuts import resolve_url
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from apps.common.constants import Level, Subject
from apps.jobs.dispatch import QUEUES
from apps.jobs.models import TERMINAL, Job, State
from apps.tutor.models import Conversation, Feedback, Message
from apps.users.models import Role, User
from lyo import dashboard
from lyo.ops import Check

JOBS = "/admin/jobs/job/"
LIST_QUERIES = 4  # session, user, count, rows
OVERVIEW_QUERIES = 10  # session, user, queues, minutes, three of schedules, waits, workers, failures


@pytest.fixture
def ann(db: None) -> User:
    return User.objects.create_user("ann", "ann@example.com", "a long passphrase")


@pytest.fixture
def viewer(db: None) -> Client:
    """Staff who may look at jobs and do no more."""
    user = User.objects.create_user("viewer", "viewer@example.com", "a long passphrase", role=Role.STAFF)
    user.user_permissions.add(Permission.objects.get(codename="view_job"))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture(autouse=True)
def all_is_well(monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    checks = {name: Check(True, "fine") for name in ("database", *(f"queue:{queue}" for queue in QUEUES))}
    monkeypatch.setattr(dashboard, "readiness", lambda: checks)
    return checks


def make_job(state: State = State.QUEUED, *, ago: float = 0, waited: float = 1, ran: float = 1, **fields: Any) -> Job:
    """A job that ended `ago` seconds ago, or was created then if it has not ended."""
    now = timezone.now()
    fields = {"kind": "chat", "queue": "generate", "request": {}, "max_attempts": 5, "resend_at": now, **fields}
    created = now - timedelta(seconds=ago)
    if state in TERMINAL:
        fields |= {"finished_at": created, "started_at": created - timedelta(seconds=ran)}
        created = fields["started_at"] - timedelta(seconds=waited)
    elif state == State.RUNNING:
        fields |= {"started_at": now, "lease_token": uuid4(), "lease_expires_at": now + timedelta(seconds=5)}
    job = Job.objects.create(state=state, **fields)
    Job.objects.filter(id=job.id).update(created_at=created)
    return job


def make_conversation(user: User, *, turns: int = 2, title: str = "Why?", **fields: Any) -> Conversation:
    conversation = Conversation.objects.create(user=user, title=title, **fields)
    for position in range(0, 2 * turns, 2):
        Message.objects.create(
            conversation=conversation, position=position, role="user", content=f"question {position}"
        )
        Message.objects.create(
            conversation=conversation,
            position=position + 1,
            role="assistant",
            content=f"answer {position}",
            finish_reason="stop",
            job=make_job(State.SUCCEEDED),
        )
    return conversation


def rate(conversation: Conversation, position: int, rating: str, reason: str = "") -> None:
    Feedback.objects.create(message=conversation.messages.get(position=position), rating=rating, reason=reason)


def listed(client: Client, url: str, **query: Any) -> set[UUID]:
    response = client.get(url, query)
    assert response.status_code == 200
    return {row.pk for row in response.context["cl"].result_list}


def act(client: Client, action: str, *jobs: Job) -> list[str]:
    response = client.post(JOBS, {"action": action, "_selected_action": [str(job.id) for job in jobs]})
    assert response.status_code == 302
    return [str(message) for message in get_messages(response.wsgi_request)]


# --- jobs ---


def test_job_list_costs_the_same_however_many(admin_client: Client, ann: User, django_assert_num_queries: Any) -> None:
    for count in (1, 20):
        for _ in range(count):
            make_job(State.SUCCEEDED, user=ann, worker="generate@host")
        with django_assert_num_queries(LIST_QUERIES):
            admin_client.get(JOBS)


def test_job_list_shows_what_a_job_did(admin_client: Client, ann: User) -> None:
    job = make_job(State.ERRORED, user=ann, waited=2.5, ran=90, worker="generate@host", attempt=3)
    page = admin_client.get(JOBS).text
    for text in (str(job.id)[:8], "Errored", "ann", "generate@host", "2.50 s", "0:01:30"):
        assert text in page


def test_deaths_and_lost_leases_of_a_job_stand_apart(admin_client: Client, ann: User) -> None:
    job = make_job(State.RUNNING, user=ann, attempt=8, crashes=5, lease_losses=2)
    row = re.findall(
        r'class="[^"]*field-(attempt|crashes|lease_losses)[^"]*"[^>]*>\s*(\d+)', admin_client.get(JOBS).text
    )
    assert dict(row) == {"attempt": "8", "crashes": "5", "lease_losses": "2"}
    page = admin_client.get(f"{JOBS}{job.id}/change/").text
    assert "Crashes" in page and "Lease losses" in page


def test_jobs_are_filtered(admin_client: Client) -> None:
    queued, embed = make_job(), make_job(State.SUCCEEDED, kind="embed", queue="embed", ago=7200)
    assert listed(admin_client, JOBS) == {queued.id, embed.id}
    assert listed(admin_client, JOBS, state__exact="queued") == {queued.id}
    assert listed(admin_client, JOBS, kind="embed") == {embed.id}
    assert listed(admin_client, JOBS, queue="generate") == {queued.id}
    hour_ago = timezone.now() - timedelta(hours=1)
    since = {"created_at_from_0": hour_ago.strftime("%Y-%m-%d"), "created_at_from_1": hour_ago.strftime("%H:%M:%S")}
    assert listed(admin_client, JOBS, **since) == {queued.id}


def test_jobs_are_searched_by_id_and_user(admin_client: Client, ann: User) -> None:
    mine, other = make_job(user=ann), make_job()
    for query in (str(mine.id), str(mine.id)[:8], str(mine.id)[:13], mine.id.hex, "ANN"):
        assert listed(admin_client, JOBS, q=query) == {mine.id}, query
    assert listed(admin_client, JOBS, q=str(other.id)[:8]) == {other.id}
    for query in ("nobody", "0" * 40, "ffffffffffffffffg"):
        assert listed(admin_client, JOBS, q=query) == set(), query


def test_a_job_is_shown_and_cannot_be_edited(admin_client: Client, ann: User, django_assert_num_queries: Any) -> None:
    job = make_job(State.FAILED, user=ann, request={"content": "почему?"}, error={"code": "deadline_exceeded"})
    url = f"{JOBS}{job.id}/change/"
    admin_client.get(url)  # Django remembers content types
    with django_assert_num_queries(4):  # session, user, the job, its user
        page = admin_client.get(url).text
    assert "почему?" in page
    assert "deadline_exceeded" in page
    assert 'name="_save"' not in page
    assert admin_client.post(url, {"state": "succeeded"}).status_code == 403
    assert admin_client.get(f"{JOBS}add/").status_code == 403


def test_only_ended_jobs_can_be_deleted(admin_client: Client) -> None:
    running, ended = make_job(State.RUNNING), make_job(State.SUCCEEDED)
    assert admin_client.post(f"{JOBS}{running.id}/delete/", {"post": "yes"}).status_code == 403
    assert admin_client.post(f"{JOBS}{ended.id}/delete/", {"post": "yes"}).status_code == 302
    both = {"action": "delete_selected", "_selected_action": [running.id], "post": "yes"}
    assert admin_client.post(JOBS, both).status_code == 403
    assert set(Job.objects.values_list("id", flat=True)) == {running.id}


def test_cancel_ends_what_is_under_way(admin_client: Client) -> None:
    jobs = [make_job(), make_job(State.RUNNING), make_job(State.SUCCEEDED)]
    assert act(admin_client, "cancel", *jobs) == ["2 of 3 cancelled; 1 had ended already."]
    assert [Job.objects.get(id=job.id).state for job in jobs] == ["cancelled", "cancelled", "succeeded"]


def test_retry_queues_what_has_failed(admin_client: Client) -> None:
    jobs = [make_job(State.FAILED), make_job(State.ERRORED), make_job(State.CANCELLED), make_job(State.SUCCEEDED)]
    assert act(admin_client, "retry", *jobs) == ["3 of 4 queued again; 1 had not failed."]
    assert [Job.objects.get(id=job.id).state for job in jobs] == ["queued", "queued", "queued", "succeeded"]


def test_who_may_only_look_cannot_act(viewer: Client) -> None:
    job = make_job()
    assert listed(viewer, JOBS) == {job.id}
    viewer.post(JOBS, {"action": "cancel", "_selected_action": [str(job.id)]})
    assert Job.objects.get(id=job.id).state == "queued"


# --- conversations and messages ---

CONVERSATIONS = "/admin/tutor/conversation/"
MESSAGES = "/admin/tutor/message/"


@pytest.mark.parametrize("url", [CONVERSATIONS, MESSAGES])
def test_tutor_lists_cost_the_same_however_many(
    admin_client: Client, ann: User, django_assert_num_queries: Any, url: str
) -> None:
    for count in (1, 10):
        for _ in range(count):
            rate(make_conversation(ann), 1, "up")
        with django_assert_num_queries(LIST_QUERIES):
            admin_client.get(url)


def test_conversation_list_counts_messages_and_ratings(admin_client: Client, ann: User) -> None:
    conversation = make_conversation(ann, turns=4)
    for position, rating in ((1, "up"), (3, "up"), (5, "down")):
        rate(conversation, position, rating)
    make_conversation(ann, turns=1)
    rows = admin_client.get(CONVERSATIONS).context["cl"].result_list
    assert [(row.messages_count, row.up_count, row.down_count) for row in rows] == [(2, 0, 0), (8, 2, 1)]


def test_conversations_are_filtered_and_searched(admin_client: Client, ann: User) -> None:
    bob = User.objects.create_user("bob", "bob@example.com", "a long passphrase")
    math = make_conversation(ann, subject=Subject.MATH, level=Level.ADVANCED)
    study = make_conversation(bob, subject=Subject.STUDY, turns=4)
    rate(study, 3, "down")
    assert listed(admin_client, CONVERSATIONS, subject__exact="math") == {math.id}
    assert listed(admin_client, CONVERSATIONS, level__exact="advanced") == {math.id}
    assert listed(admin_client, CONVERSATIONS, rating="down") == {study.id}
    assert listed(admin_client, CONVERSATIONS, rating="up") == set()
    assert listed(admin_client, CONVERSATIONS, q="bob") == {study.id}
    assert listed(admin_client, CONVERSATIONS, q="question 6") == {study.id}


def test_a_conversation_shows_its_messages_in_order(
    admin_client: Client, ann: User, django_assert_num_queries: Any
) -> None:
    conversation = make_conversation(ann, turns=3)
    rate(conversation, 3, "down", "too fast")
    url = f"{CONVERSATIONS}{conversation.id}/change/"
    admin_client.get(url)  # Django remembers content types
    with django_assert_num_queries(6):  # session, user, the conversation, its user, messages and their count
        page = admin_client.get(url).text
    said = [page.index(f"{role} {n}") for n in (0, 2, 4) for role in ("question", "answer")]
    assert said == sorted(said)
    assert "Thumbs down" in page
    assert "too fast" in page


def test_what_learners_said_cannot_be_changed(admin_client: Client, ann: User) -> None:
    conversation = make_conversation(ann)
    message = conversation.messages.get(position=0)
    for url in (f"{CONVERSATIONS}{conversation.id}/", f"{MESSAGES}{message.id}/"):
        assert admin_client.get(f"{url}change/").status_code == 200
        assert admin_client.post(f"{url}change/", {"content": "other"}).status_code == 403
        assert admin_client.post(f"{url}delete/", {"post": "yes"}).status_code == 403
    message.refresh_from_db()
    assert message.content == "question 0"


def test_messages_are_filtered_and_searched(admin_client: Client, ann: User) -> None:
    conversation = make_conversation(ann, subject=Subject.MATH)
    rate(conversation, 1, "up")
    first, second = conversation.messages.get(position=0), conversation.messages.get(position=1)
    assert listed(admin_client, MESSAGES, feedback__rating__exact="up") == {second.id}
    assert listed(admin_client, MESSAGES, role__exact="user", q="question 0") == {first.id}
    assert listed(admin_client, MESSAGES, conversation__subject__exact="study") == set()


@pytest.mark.parametrize("model", ["periodictask", "intervalschedule", "crontabschedule"])
def test_schedules_can_be_edited(admin_client: Client, model: str) -> None:
    for page in ("changelist", "add"):
        assert admin_client.get(reverse(f"admin:django_celery_beat_{model}_{page}")).status_code == 200


CRONTAB = {"minute": "0", "hour": "3", "day_of_month": "*", "month_of_year": "*", "day_of_week": "*", "timezone": "UTC"}
TASKS = {"periodictask_set-TOTAL_FORMS": "0", "periodictask_set-INITIAL_FORMS": "0"}


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"day_of_month": "31", "month_of_year": "2"}, "day_of_month"),
        ({"day_of_month": "31", "month_of_year": "4,6"}, "day_of_month"),
        ({"day_of_week": "7"}, "day_of_week"),  # which beat does not know, though the validator does
        ({"hour": "24"}, "hour"),
        ({"minute": ","}, "minute"),
        ({"day_of_month": "29", "month_of_year": "2"}, None),
    ],
)
def test_a_crontab_that_names_no_time_is_refused_by_its_field(
    admin_client: Client, changed: dict[str, str], field: str | None
) -> None:
    response = admin_client.post(
        reverse("admin:django_celery_beat_crontabschedule_add"), {**CRONTAB, **TASKS, **changed}
    )
    assert response.status_code == (200 if field else 302)
    assert CrontabSchedule.objects.exists() == (not field)
    if field:
        assert list(response.context["adminform"].form.errors) == [field]


# --- the first page ---


def overview(client: Client) -> dict[str, Any]:
    response = client.get("/admin/")
    assert response.status_code == 200
    return response.context_data  # type: ignore[attr-defined]


def test_overview_figures_are_exact(admin_client: Client, django_assert_num_queries: Any) -> None:
    for waited in (1, 2, 3, 4):
        make_job(State.SUCCEEDED, ago=90, waited=waited, worker="generate@a")
    failed = make_job(State.ERRORED, ago=600, waited=100, worker="generate@b", error={"code": "internal_error"})
    make_job(State.SUCCEEDED, ago=3700, worker="generate@c")  # before the window
    make_job(State.RUNNING, worker="generate@b")
    make_job(ago=42)
    make_job(ago=7, kind="embed", queue="embed")
    with django_assert_num_queries(OVERVIEW_QUERIES):
        page = overview(admin_client)
    assert [(notice["level"], notice["text"]) for notice in page["notices"]] == [
        ("danger", "1 errored in the last hour")
    ]
    assert {card["title"]: card["value"] for card in page["cards"]} == {
        "Waiting": 2,
        "Running": 1,
        "Succeeded": 4,
        "Failed": 0,
        "Errored": 1,
    }
    assert page["waited"] == {"median": "3.00 s", "p95": "0:01:21"}
    queues = json.loads(page["queue_chart"])
    assert queues["labels"] == list(QUEUES)
    assert {bars["label"]: bars["data"] for bars in queues["datasets"]} == {
        "Queued": [{"embed": 1, "generate": 1}.get(queue, 0) for queue in QUEUES],
        "Running": [{"generate": 1}.get(queue, 0) for queue in QUEUES],
    }
    oldest = dict(zip(QUEUES, (row[1] for row in page["queue_table"]["rows"]), strict=True))
    assert float(oldest["embed"].removesuffix(" s")) == pytest.approx(7, abs=2)
    assert float(oldest["generate"].removesuffix(" s")) == pytest.approx(42, abs=2)
    assert [row[:4] for row in page["worker_table"]["rows"]] == [["generate@a", 0, 4, 0], ["generate@b", 1, 1, 1]]
    (failure,) = page["failure_table"]["rows"]
    assert str(failed.id) in failure[0]
    assert failure[-1] == "internal_error"


def test_overview_charts_the_last_hour_by_minute(admin_client: Client) -> None:
    first, second = (make_job(State.SUCCEEDED, ago=ago) for ago in (130, 130))
    failed = make_job(State.FAILED, ago=1800)
    page = overview(admin_client)
    assert _nonzero(page["throughput_chart"], "Succeeded") in (
        {_minute(first.finished_at): 2},
        {_minute(first.finished_at): 1, _minute(second.finished_at): 1},
    )
    assert _nonzero(page["failures_chart"], "Failed") == {_minute(failed.finished_at): 1}
    assert _nonzero(page["failures_chart"], "Errored") == {}


def _nonzero(chart: str, label: str) -> dict[str, int]:
    data = json.loads(chart)
    bars = next(bars["data"] for bars in data["datasets"] if bars["label"] == label)
    return {minute: value for minute, value in zip(data["labels"], bars, strict=True) if value}


def _minute(time: datetime | None) -> str:
    assert time
    return timezone.localtime(time).strftime("%H:%M")


def test_overview_links_lead_to_filtered_lists(admin_client: Client) -> None:
    job = make_job()
    make_job(State.SUCCEEDED)
    card = overview(admin_client)["cards"][0]
    assert listed(admin_client, card["href"]) == {job.id}


def notices(client: Client) -> list[tuple[str, str]]:
    """Level and text of each; their links must lead somewhere."""
    page = overview(client)
    for notice in page["notices"]:
        assert client.get(notice["href"]).status_code in (200, 503)
    assert page["health"] == (page["notices"][0]["level"] if page["notices"] else None)
    return [(notice["level"], notice["text"]) for notice in page["notices"]]


def test_overview_says_that_all_is_well_where_it_is(admin_client: Client) -> None:
    make_job(State.SUCCEEDED)
    make_job(State.CANCELLED)
    make_job(ago=50)
    make_job(ago=3600, kind="train", queue="train")  # waits for another run
    make_job(State.ERRORED, ago=3700)
    assert notices(admin_client) == []
    assert "All is well" in admin_client.get("/admin/").text


def test_overview_is_red_where_a_check_fails(admin_client: Client, all_is_well: dict[str, Check]) -> None:
    all_is_well["queue:embed"] = Check(False, "no canary was answered")
    all_is_well["database"] = Check(False, "does not answer")
    assert notices(admin_client) == [
        ("danger", "database: does not answer"),
        ("danger", "queue:embed: no canary was answered"),
    ]
    page = admin_client.get("/admin/").text
    assert "All is well" not in page
    assert "no canary was answered" in page


def test_overview_is_amber_for_failures_and_red_for_errors(admin_client: Client) -> None:
    make_job(State.FAILED, ago=60)
    make_job(State.FAILED, ago=1800)
    assert notices(admin_client) == [("warning", "2 failed in the last hour")]
    errored = make_job(State.ERRORED, ago=3000)
    assert notices(admin_client) == [("danger", "1 errored in the last hour"), ("warning", "2 failed in the last hour")]
    assert listed(admin_client, overview(admin_client)["notices"][0]["href"]) == {errored.id}


@pytest.mark.parametrize(
    ("queue", "waited", "level"),
    [("generate", 90, "warning"), ("embed", 700, "danger"), ("train", 25000, "warning"), ("train", 90000, "danger")],
)
def test_overview_tells_of_the_job_that_has_waited_longest(
    admin_client: Client, queue: str, waited: int, level: str
) -> None:
    oldest = make_job(ago=waited, queue=queue)
    make_job(queue=queue)
    ((found, text),) = notices(admin_client)
    assert (found, text.partition(" for ")[0]) == (level, f"{queue}: the oldest job has waited")
    assert oldest.id in listed(admin_client, overview(admin_client)["notices"][0]["href"])


@pytest.mark.parametrize(
    ("every", "ran", "expected"),
    [
        (10, 200, []),
        (10, 400, [("warning", "tidy should have run 0:06:30 ago")]),
        (10, 7210, [("danger", "tidy should have run 2:00:00 ago")]),
        (86_400, 80_000, []),
        (86_400, 86_400 + 3660, [("danger", "tidy should have run 1:01:00 ago")]),
    ],
)
def test_overview_tells_of_schedules_that_stopped(
    admin_client: Client, every: int, ran: int, expected: list[tuple[str, str]]
) -> None:
    interval = IntervalSchedule.objects.create(every=every, period="seconds")
    ran_at = timezone.now() - timedelta(seconds=ran)
    task = PeriodicTask.objects.create(name="tidy", task="jobs.tidy", interval=interval, last_run_at=ran_at)
    told = [(level, re.sub(r"\d ago$", "0 ago", text)) for level, text in notices(admin_client)]
    assert told == expected
    task.enabled = False
    task.save()
    assert notices(admin_client) == []


def test_overview_tells_of_a_nightly_schedule_that_was_left_out(admin_client: Client) -> None:
    nightly = CrontabSchedule.objects.create(hour="3", minute="0")
    long_ago = timezone.now() - timedelta(days=3)
    PeriodicTask.objects.create(name="nightly", task="feed.foresee", crontab=nightly, last_run_at=long_ago)
    ((level, text),) = notices(admin_client)
    assert (level, text[:7]) == ("danger", "nightly")
    PeriodicTask.objects.update(last_run_at=timezone.now())
    assert notices(admin_client) == []


def test_overview_is_for_those_who_may_see_jobs(db: None, viewer: Client) -> None:
    assert "cards" in overview(viewer)
    User.objects.get(username="viewer").user_permissions.clear()
    assert "cards" not in overview(viewer)


# --- the front ---


def test_the_front_leads_staff_to_their_desk_and_others_to_the_docs(
    client: Client, admin_client: Client, ann: User
) -> None:
    assert client.get("/").headers["Location"] == "/api/docs/"
    client.force_login(ann)
    assert client.get("/").headers["Location"] == "/api/docs/"
    assert client.get("/api/docs/").status_code == 200
    assert admin_client.get("/").headers["Location"] == "/admin/"


def test_who_logs_in_is_led_somewhere(client: Client, admin_user: User) -> None:
    """Django's default is a profile page, which there is not."""
    assert settings.LOGIN_REDIRECT_URL == "/"
    assert client.get(resolve_url(settings.LOGIN_URL)).status_code == 200
    login = {"username": admin_user.username, "password": "password"}
    response = client.post("/admin/login/", login, follow=True)
    assert response.redirect_chain[-1] == ("/admin/", 302)


def test_overview_tells_of_a_schedule_that_is_never_due(admin_client: Client) -> None:
    crontab = CrontabSchedule.objects.create(day_of_month="31", month_of_year="2")
    task = PeriodicTask.objects.create(name="yearly", task="jobs.tidy", crontab=crontab)
    ((level, text),) = notices(admin_client)
    assert (level, text.partition(": ")[0]) == ("danger", "yearly is never due")
    assert "day_of_month '31' never occurs in month_of_year '2'" in text
    task.enabled = False
    task.save()
    assert notices(admin_client) == []


def test_overview_tells_of_a_disabled_schedule_that_is_shipped(admin_client: Client) -> None:
    hourly = IntervalSchedule.objects.create(every=1, period="hours")
    for name in ("users.tidy", "training.look 7"):
        PeriodicTask.objects.create(name=name, task="users.tidy", interval=hourly, enabled=False)
    assert notices(admin_client) == [("warning", "users.tidy is disabled, and Lyo counts on it")]
