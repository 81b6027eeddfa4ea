"""Where addresses are confirmed, an account that is not may read and manage itself, and is erased after some days."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.core import mail
from django.utils import timezone
from rest_framework.test import APIClient

from apps.common.throttles import ConfirmationThrottle, TokenBucket
from apps.users import services, tasks
from apps.users.models import User
from lyo import env
from lyo.celery import app
from tests.apps.users.conftest import PASSWORD

pytestmark = pytest.mark.django_db

REGISTER, CONFIRM, RESEND, ME = (
    "/api/v1/auth/register",
    "/api/v1/auth/confirm",
    "/api/v1/auth/confirm/resend",
    "/api/v1/me",
)


@pytest.fixture(autouse=True)
def confirming(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Addresses are confirmed, and what would be sent to a worker is done at once."""
    monkeypatch.setattr(env, "CONFIRM_EMAIL", True)
    monkeypatch.setattr(ConfirmationThrottle, "bucket", TokenBucket(f"test-{uuid4()}", 3 / 60, burst=3))

    def send_task(name: str, args: list[Any], queue: str) -> None:
        assert (name, queue) == (tasks.send_confirmation.name, "default")
        tasks.send_confirmation(*args)

    monkeypatch.setattr(app, "send_task", send_task)
    return


@pytest.fixture
def zoe(anonymous: APIClient, django_capture_on_commit_callbacks: Any) -> APIClient:
    body = {"username": "zoe", "email": "zoe@example.org", "password": PASSWORD, "birth_year": 2001}
    with django_capture_on_commit_callbacks(execute=True):
        answer = anonymous.post(REGISTER, body)
    assert answer.status_code == 201
    assert (answer.json()["user"]["email_confirmed"], answer.json()["user"]["birth_year"]) == (False, 2001)
    return APIClient(REMOTE_ADDR=uuid4().hex, HTTP_AUTHORIZATION=f"Bearer {answer.json()['token']}")


def token_of(message: mail.EmailMessage) -> str:
    (token,) = re.findall(r"^\s+([\w:-]{50,})$", str(message.body), re.MULTILINE)
    return str(token)


def code(answer: Any) -> tuple[int, str, str]:
    (error,) = answer.json()["errors"]
    return answer.status_code, error["attr"], error["code"]


def test_the_mail_has_a_token_that_confirms(zoe: APIClient, anonymous: APIClient) -> None:
    (message,) = mail.outbox
    assert message.to == ["zoe@example.org"]
    assert code(zoe.post("/api/v1/feed/events", {"events": []})) == (403, None, "email_not_confirmed")
    assert anonymous.post(CONFIRM, {"token": token_of(message)}).status_code == 204
    assert zoe.get(ME).json()["email_confirmed"] is True
    assert zoe.post("/api/v1/feed/events", {"events": []}).status_code != 403
    assert zoe.post(RESEND).json()["errors"][0]["code"] == "already_confirmed"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("post", "/api/v1/tutor/conversations", {}),
        ("post", "/v1/chat/completions", {"model": "tutor", "messages": [{"role": "user", "content": "Hi"}]}),
        ("post", "/v1/embeddings", {"model": "embedding", "input": "Hi"}),
        ("post", "/api/v1/feed/follows", {"author": "Tess"}),
    ],
)
def test_who_has_not_confirmed_makes_nobody_work(zoe: APIClient, method: str, path: str, body: dict[str, Any]) -> None:
    assert getattr(zoe, method)(path, body).status_code == 403


def test_who_has_not_confirmed_may_read_and_manage_the_account(zoe: APIClient) -> None:
    assert zoe.get("/api/v1/content/items").status_code == 200
    assert zoe.patch(ME, {"level": "advanced"}).status_code == 200
    assert zoe.get("/api/v1/me/export").status_code == 200
    change = {"old": PASSWORD, "new": "another-horse-7-battery"}
    assert zoe.post("/api/v1/auth/password", change).status_code == 204
    assert zoe.delete(ME, {"password": change["new"]}).status_code == 204


def test_it_can_be_sent_again_but_not_without_end(zoe: APIClient, django_capture_on_commit_callbacks: Any) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        assert [zoe.post(RESEND).status_code for _ in range(4)] == [202, 202, 202, 429]
    assert len(mail.outbox) == 4


def test_a_token_is_good_for_one_address_and_some_hours(
    zoe: APIClient, anonymous: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_of(mail.outbox[0])
    monkeypatch.setattr(env, "CONFIRMATION_HOURS", -1)
    assert code(anonymous.post(CONFIRM, {"token": token})) == (400, "token", "expired")
    monkeypatch.setattr(env, "CONFIRMATION_HOURS", 1)
    assert code(anonymous.post(CONFIRM, {"token": token[:-1] + "x"})) == (400, "token", "invalid")
    User.objects.update(email="other@example.org")
    assert code(anonymous.post(CONFIRM, {"token": token})) == (400, "token", "invalid")
    assert User.objects.get().awaits_confirmation


def test_the_mail_has_a_link_where_there_is_a_page(zoe: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "CONFIRM_URL", "https://lyo.example.org/confirm#{token}")
    services.confirmation_send(user_id=User.objects.get().pk)
    assert re.search(r"^  https://lyo\.example\.org/confirm#[\w:-]{50,}$", str(mail.outbox[1].body), re.MULTILINE)


def test_accounts_that_were_never_confirmed_are_erased(zoe: APIClient, bob: APIClient) -> None:
    User.objects.update(date_joined=timezone.now() - timedelta(days=env.UNCONFIRMED_DAYS, minutes=1))
    User.objects.filter(username="bob").update(awaits_confirmation=False)
    tasks.tidy()
    assert list(User.objects.values_list("username", flat=True)) == ["bob"]


def test_without_the_setting_nobody_waits(anonymous: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "CONFIRM_EMAIL", False)
    body = {"username": "zoe", "email": "zoe@example.org", "password": PASSWORD}
    assert anonymous.post(REGISTER, body).json()["user"]["email_confirmed"] is True
    assert not mail.outbox


@pytest.mark.parametrize("year", [1899, 3000, "x", 99999999999])
def test_a_birth_year_that_nobody_has_is_refused(anonymous: APIClient, year: Any) -> None:
    body = {"username": "zoe", "email": "zoe@example.org", "password": PASSWORD, "birth_year": year}
    answer = anonymous.post(REGISTER, body)
    assert (answer.status_code, answer.json()["errors"][0]["attr"]) == (400, "birth_year")
    assert not User.objects.exists()
