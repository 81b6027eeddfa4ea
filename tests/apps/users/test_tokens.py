from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from apps.users import services
from apps.users.models import Token
from tests.apps.users.conftest import PASSWORD

pytestmark = pytest.mark.django_db

TOKENS, ME = "/api/v1/auth/tokens", "/api/v1/me"


def test_a_named_token_is_shown_once_and_works(ann: APIClient, anonymous: APIClient) -> None:
    made = ann.post(TOKENS, {"name": "homework script", "password": PASSWORD})
    body = made.json()
    token = Token.objects.get(name="homework script")
    assert made.status_code == 201
    assert body == {
        "id": str(token.id),
        "name": "homework script",
        "ending": body["token"][-4:],
        "created_at": token.created_at.isoformat().replace("+00:00", "Z"),
        "expires_at": token.expiry.isoformat().replace("+00:00", "Z"),
        "current": False,
        "token": body["token"],
    }
    assert anonymous.get(ME, HTTP_AUTHORIZATION=f"Bearer {body['token']}").status_code == 200
    listed = ann.get(TOKENS).json()
    assert [(row["name"], row["current"]) for row in listed["results"]] == [("homework script", False), ("", True)]
    assert body["token"] not in str(listed)


def test_a_token_without_a_name_is_refused(ann: APIClient) -> None:
    assert ann.post(TOKENS, {}).status_code == 400
    assert ann.post(TOKENS, {"name": "x" * 101}).status_code == 400


def test_a_revoked_token_is_dead(ann: APIClient, anonymous: APIClient) -> None:
    made = ann.post(TOKENS, {"name": "lost phone", "password": PASSWORD}).json()
    assert ann.delete(f"{TOKENS}/{made['id']}").status_code == 204
    assert anonymous.get(ME, HTTP_AUTHORIZATION=f"Bearer {made['token']}").status_code == 401
    assert ann.delete(f"{TOKENS}/{made['id']}").status_code == 404


def test_a_foreign_and_an_unknown_token_are_404_alike(ann: APIClient, bob: APIClient) -> None:
    foreign = Token.objects.get(user=bob.user)
    answers = [ann.delete(f"{TOKENS}/{token_id}") for token_id in (foreign.id, uuid4())]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json() == answers[1].json()
    assert bob.get(ME).status_code == 200
    assert ann.delete(f"{TOKENS}/not-an-id").status_code == 404


def test_an_expired_token_is_401_and_goes_at_the_next_login(ann: APIClient) -> None:
    Token.objects.update(expiry=timezone.now() - timedelta(seconds=1))
    answer = ann.get(ME)
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.json()["errors"][0]["detail"] == "The token has expired."
    ann.credentials()
    credentials = {"username": "ann", "password": "correct-horse-9-battery"}
    assert ann.post("/api/v1/auth/login", credentials).status_code == 200
    assert Token.objects.count() == 1


@pytest.mark.parametrize("header", ["Bearer", "Bearer nope", "Bearer a b", "Bearer \xff\xfe", "Bearer " + "x" * 5000])
def test_a_bad_bearer_is_401_in_the_one_format(anonymous: APIClient, db: None, header: str) -> None:
    answer = anonymous.get(ME, HTTP_AUTHORIZATION=header)
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.json()["errors"][0]["code"] == "authentication_failed"


@pytest.mark.parametrize("header", [{}, {"HTTP_AUTHORIZATION": "Basic YTpi"}])
def test_without_a_token_nothing_is_shown(anonymous: APIClient, header: dict[str, str]) -> None:
    answer = anonymous.get(ME, **header)
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.json()["errors"][0]["code"] == "not_authenticated"


# --- pages ---


def pages(client: APIClient, url: str | None) -> Any:
    while url:
        page = client.get(url).json()
        yield [row["name"] for row in page["results"]]
        url = page["next"]


def test_pages_show_each_token_once_newest_first(ann: APIClient) -> None:
    for n in range(6):
        services.token_create(user=ann.user, name=str(n))
    assert list(pages(ann, f"{TOKENS}?page_size=3")) == [["5", "4", "3"], ["2", "1", "0"], [""]]


@pytest.mark.parametrize(
    "cursor", ["x", "cD0x", "cD1ub25zZW5zZQ==", "cD0lMDA=", "bz0tMQ==", "cj14", "cD05OTk5LTk5LTk5", "%00", "ü"]
)
def test_a_broken_cursor_is_404(ann: APIClient, cursor: str) -> None:
    answer = ann.get(TOKENS, {"cursor": cursor})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "not_found")


@pytest.mark.parametrize("size", ["0", "-1", "x", "1e9", ""])
def test_an_odd_page_size_is_refused_by_name(ann: APIClient, size: str) -> None:
    answer = ann.get(TOKENS, {"page_size": size})
    assert (answer.status_code, answer.json()["errors"][0]["attr"]) == (400, "page_size")


def test_a_huge_page_size_does_no_harm(ann: APIClient) -> None:
    assert ann.get(TOKENS, {"page_size": "9" * 30}).status_code == 200
