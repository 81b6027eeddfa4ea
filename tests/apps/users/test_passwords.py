"""A password change, leaving everywhere, and what a token alone cannot do."""

from typing import Any
from uuid import uuid4

import pytest
from django.contrib.sessions.models import Session
from django.test import Client
from rest_framework.test import APIClient

from apps.users import services
from apps.users.models import Role, Token, User
from tests.apps.users.conftest import PASSWORD

pytestmark = pytest.mark.django_db

ME, CHANGE, TOKENS = "/api/v1/me", "/api/v1/auth/password", "/api/v1/auth/tokens"
NEW = "another-horse-7-battery"


@pytest.fixture
def desk(ann: APIClient) -> Client:
    """Ann at the admin."""
    User.objects.filter(pk=ann.user.pk).update(role=Role.STAFF, is_staff=True)
    client = Client(REMOTE_ADDR=uuid4().hex)
    assert client.post("/admin/login/?next=/admin/", {"username": "ann", "password": PASSWORD}).status_code == 302
    return client


def errors(answer: Any) -> dict[str, str]:
    return {error["attr"]: error["code"] for error in answer.json()["errors"]}


def test_a_password_change_ends_other_tokens_and_sessions(ann: APIClient, bob: APIClient, desk: Client) -> None:
    other = services.token_create(user=ann.user, name="lost phone")[1]
    assert ann.post(CHANGE, {"old": PASSWORD, "new": NEW}).status_code == 204
    assert ann.get(ME).status_code == 200
    assert APIClient().get(ME, HTTP_AUTHORIZATION=f"Bearer {other}").status_code == 401
    assert desk.get("/admin/").status_code == 302
    assert not Session.objects.exists()
    assert bob.get(ME).status_code == 200
    user = User.objects.get(username="ann")
    assert (user.check_password(NEW), user.check_password(PASSWORD)) == (True, False)


@pytest.mark.parametrize(
    ("change", "attr", "code"),
    [
        ({"old": "wrong"}, "old", "wrong_password"),
        ({"new": "short"}, "new", "password_too_short"),
        ({"new": "ann@example.org"}, "new", "password_too_similar"),
        ({"new": "x" * 129}, "new", "max_length"),
        ({"old": ""}, "old", "blank"),
        ({"token": "x"}, "token", "unknown"),
    ],
)
def test_a_refused_password_change_names_the_field_and_ends_nothing(
    ann: APIClient, change: dict[str, str], attr: str, code: str
) -> None:
    services.token_create(user=ann.user)
    answer = ann.post(CHANGE, {"old": PASSWORD, "new": NEW} | change)
    assert (answer.status_code, errors(answer)[attr]) == (400, code)
    assert User.objects.get(username="ann").check_password(PASSWORD)
    assert Token.objects.count() == 2


def test_leaving_everywhere_ends_all_tokens_and_sessions(ann: APIClient, bob: APIClient, desk: Client) -> None:
    services.token_create(user=ann.user)
    assert ann.post("/api/v1/auth/logout-all").status_code == 204
    assert ann.get(ME).status_code == 401
    assert list(Token.objects.values_list("user__username", flat=True)) == ["bob"]
    assert desk.get("/admin/").status_code == 302


def test_a_token_makes_no_other_without_the_password(ann: APIClient) -> None:
    assert errors(ann.post(TOKENS, {"name": "mine"})) == {"password": "required"}
    assert errors(ann.post(TOKENS, {"name": "mine", "password": "guess"})) == {"password": "wrong_password"}
    assert Token.objects.count() == 1
    assert ann.post(TOKENS, {"name": "mine", "password": PASSWORD}).status_code == 201


def test_tokens_are_listed_by_what_their_user_knows_of_them(ann: APIClient) -> None:
    text = services.token_create(user=ann.user, name="laptop")[1]
    (row, _) = ann.get(TOKENS).json()["results"]
    assert row.keys() == {"id", "name", "ending", "created_at", "expires_at", "current"}
    assert (row["name"], row["ending"], row["current"]) == ("laptop", text[-4:], False)


def test_a_login_whose_password_changes_meanwhile_gets_no_token(
    ann: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def authenticate(**credentials: str) -> User:
        user = User.objects.get(username="ann")
        services.password_change(user=user, old=PASSWORD, new=NEW, token=Token.objects.get())
        return user

    monkeypatch.setattr(services, "authenticate", authenticate)
    answer = APIClient(REMOTE_ADDR=uuid4().hex).post("/api/v1/auth/login", {"username": "ann", "password": PASSWORD})
    assert answer.status_code == 401
    assert Token.objects.count() == 1
