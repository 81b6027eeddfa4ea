"""Who guesses passwords is slowed, from one address or from many, and no owner is locked out by it."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings
from rest_framework.test import APIClient

from apps.common import redis
from apps.common.throttles import LoginThrottle, RegistrationThrottle, TokenBucket, client_address, client_network
from apps.users.models import Role, User
from tests.apps.users.conftest import PASSWORD
from tests.helpers import wide

pytestmark = pytest.mark.django_db

REGISTER, LOGIN, ME = "/api/v1/auth/register", "/api/v1/auth/login", "/api/v1/me"


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three failures of an address at an account, six of an address; of an account eight an hour, two from each."""
    monkeypatch.setattr(LoginThrottle, "bucket", TokenBucket("test-pair", 3))
    monkeypatch.setattr(LoginThrottle, "of_address", TokenBucket("test-address", 6))
    monkeypatch.setattr(LoginThrottle, "share", TokenBucket("test-share", 2 / 60, burst=2))
    monkeypatch.setattr(LoginThrottle, "of_account", TokenBucket("test-account", 8 / 60, burst=8))
    redis.cache().flushdb()
    yield
    redis.cache().flushdb()


def at(address: str) -> APIClient:
    return APIClient(REMOTE_ADDR=address)


def guess(address: str, name: str = "ann", password: str = "guess") -> int:
    return at(address).post(LOGIN, {"username": name, "password": password}).status_code


def test_all_spellings_of_a_name_share_a_limit(register: object) -> None:
    at("10.1.0.1").post(REGISTER, {"username": "ann", "email": "ann@example.org", "password": PASSWORD})
    spellings = ("ann", "ANN", wide("ann"), "Ann", "aNn")
    assert [guess("10.1.0.1", name) for name in spellings] == [401, 401, 401, 429, 429]


def test_many_names_from_one_address_share_a_limit() -> None:
    assert [guess("10.1.0.1", f"n{number}") for number in range(8)] == [401] * 6 + [429] * 2
    assert guess("10.1.0.2", "n0") == 401


def test_many_addresses_that_guess_one_account_are_slowed(ann: APIClient) -> None:
    answers = [guess(f"10.2.0.{number}") for number in range(1, 30)]
    assert answers == [401] * 8 + [429] * 21
    refused = at("10.2.9.9").post(LOGIN, {"username": "ANN", "password": "guess"})
    assert 420 < int(refused["Retry-After"]) <= 450
    assert guess("10.2.9.9", "bob") == 401


def test_the_owner_logs_in_from_where_they_were_while_others_guess(anonymous: APIClient) -> None:
    home = at("10.3.0.1")
    home.post(REGISTER, {"username": "ann", "email": "ann@example.org", "password": PASSWORD})
    assert [guess(f"10.4.0.{number}") for number in range(1, 12)][-1] == 429
    assert guess("10.3.0.1", "Ann", PASSWORD) == 200
    assert guess("10.3.0.1") == 401  # a slip of the pen does not lock them out either
    assert guess("10.3.0.1", password=PASSWORD) == 200


def test_a_neighbour_alone_does_not_use_up_what_an_account_may_fail(ann: APIClient) -> None:
    assert [guess("10.5.0.1") for _ in range(6)] == [401] * 2 + [429] * 4
    assert guess("10.5.0.2", password=PASSWORD) == 200  # its owner, somewhere new


def test_the_addresses_of_one_line_of_ipv6_are_one(ann: APIClient) -> None:
    assert [guess(f"2001:db8:1:2::{number}") for number in range(1, 5)] == [401, 401, 429, 429]
    assert guess("2001:db8:1:3::1") == 401


def test_the_desk_counts_with_the_api(ann: APIClient) -> None:
    User.objects.filter(pk=ann.user.pk).update(role=Role.STAFF, is_staff=True)
    desk = Client(REMOTE_ADDR="10.6.0.1")
    for _ in range(2):
        desk.post("/admin/login/", {"username": "ANN", "password": "guess"})
    assert "Too many failed" in desk.post("/admin/login/", {"username": "ann", "password": "x"}).content.decode()
    assert guess("10.6.0.1") == 429


def test_a_stolen_token_does_not_guess_the_password_faster(ann: APIClient) -> None:
    tries = [
        ann.delete(ME, {"password": "guess"}),
        ann.post("/api/v1/auth/password", {"old": "guess", "new": "another-horse-7-battery"}),
        ann.post("/api/v1/auth/tokens", {"name": "mine", "password": "guess"}),
    ]
    assert [answer.status_code for answer in tries] == [400, 400, 429]


def test_where_and_who_is_kept_as_digests_and_goes_with_the_account(
    ann: APIClient, django_capture_on_commit_callbacks: Any
) -> None:
    address = ann.defaults["REMOTE_ADDR"]
    assert guess(address, password=PASSWORD) == 200
    keys = [key for key in redis.cache().scan_iter() if key.startswith("lyo:logins:")]
    assert len(keys) == 1
    assert "ann" not in keys[0]
    assert address not in str(redis.cache().zrange(keys[0], 0, -1))
    with django_capture_on_commit_callbacks(execute=True):
        assert ann.delete(ME, {"password": PASSWORD}).status_code == 204
    assert not list(redis.cache().scan_iter("lyo:logins:*"))


# --- addresses ---


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4:5678", "1.2.3.4"),
        ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "1.2.3.4\r\nforged", "10.0.0.1"),
        ("8.8.8.8", "1.2.3.4", "8.8.8.8"),  # no proxy of ours
    ],
)
def test_only_a_trusted_proxy_says_who_calls(
    rf: object, settings: Settings, peer: str, forwarded: str, address: str
) -> None:
    settings.TRUSTED_PROXIES = 1
    request = APIClient().get("/livez", REMOTE_ADDR=peer).wsgi_request
    request.META["HTTP_X_FORWARDED_FOR"] = forwarded
    assert client_address(request) == address


def test_registrations_are_counted_by_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RegistrationThrottle, "bucket", TokenBucket("test-lines", 1))
    assert [at(f"2001:db8::{n}").post(REGISTER, {}).status_code for n in (1, 2)] == [400, 429]
    assert client_network(at("1.2.3.4").get("/livez").wsgi_request) == "1.2.3.4"
