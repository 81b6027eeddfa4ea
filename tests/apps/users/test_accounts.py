import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone
from rest_framework.test import APIClient

from apps.common.throttles import LoginThrottle, RegistrationThrottle, TokenBucket
from apps.users import services
from apps.users.models import Role, Token, User
from tests.apps.conftest import exported
from tests.apps.users.conftest import PASSWORD, NewClient

pytestmark = pytest.mark.django_db

REGISTER, LOGIN, ME = "/api/v1/auth/register", "/api/v1/auth/login", "/api/v1/me"
CARLA = {"username": "carla", "email": "Carla@Example.org", "password": PASSWORD}


def errors(answer: Any) -> dict[str, str]:
    """Attribute and code of each error."""
    return {error["attr"]: error["code"] for error in answer.json()["errors"]}


# --- registration ---


def test_registration_makes_a_learner_whose_token_works(anonymous: APIClient) -> None:
    answer = anonymous.post(REGISTER, CARLA)
    body = answer.json()
    user = User.objects.get(username="carla")
    assert answer.status_code == 201
    assert body["user"] == {
        "id": str(user.id),
        "username": "carla",
        "email": "carla@example.org",
        "role": "learner",
        "interests": [],
        "level": "beginner",
        "language": "en",
        "birth_year": None,
        "training_consent": False,
        "email_confirmed": True,
        "date_joined": user.date_joined.isoformat().replace("+00:00", "Z"),
    }
    assert body.keys() == {"user", "token"}
    assert anonymous.get(ME, HTTP_AUTHORIZATION=f"Bearer {body['token']}").json() == body["user"]
    assert user.password.startswith("argon2$")


@pytest.mark.parametrize(
    ("change", "attr", "code"),
    [
        ({"username": "ann"}, "username", "unique"),
        ({"email": "ANN@example.ORG"}, "email", "unique"),
        ({"password": "short"}, "password", "password_too_short"),
        ({"password": "12345678901"}, "password", "password_entirely_numeric"),
        ({"password": "password123"}, "password", "password_too_common"),
        ({"username": "wilhelmina", "password": "wilhelmina1"}, "password", "password_too_similar"),
        ({"password": "x" * 129}, "password", "max_length"),
        ({"username": "two words"}, "username", "invalid"),
        ({"username": "x" * 151}, "username", "max_length"),
        ({"username": ""}, "username", "blank"),
        ({"email": "nobody"}, "email", "invalid"),
        ({"role": "staff"}, "role", "unknown"),
        ({"is_superuser": True}, "is_superuser", "unknown"),
    ],
)
def test_a_refused_registration_names_the_field_and_changes_nothing(
    anonymous: APIClient, ann: APIClient, change: dict[str, Any], attr: str, code: str
) -> None:
    answer = anonymous.post(REGISTER, CARLA | change)
    assert (answer.status_code, answer.json()["type"]) == (400, "validation_error")
    assert errors(answer)[attr] == code
    assert User.objects.count() == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"[]", 400),
        (b'{"username": "\xff"}', 400),
        (rb'{"username": "a\u0000b", "email": "a@b.org", "password": "correct-horse-9-battery"}', 400),
        (rb'{"username": "a\ud800", "email": "a@b.org", "password": "correct-horse-9-battery"}', 400),
        (b'{"username": "' + b"x" * 3_000_000 + b'"}', 413),
    ],
)
def test_a_broken_body_is_refused(anonymous: APIClient, body: bytes, status: int) -> None:
    answer = anonymous.generic("POST", REGISTER, body, "application/json")
    assert answer.status_code == status
    assert answer.json()["errors"]
    assert anonymous.generic("POST", REGISTER, "username=x", "application/x-www-form-urlencoded").status_code == 415


@pytest.mark.django_db(transaction=True)
def test_of_two_registrations_at_once_one_gets_the_name(anonymous: APIClient) -> None:
    barrier = threading.Barrier(2)

    def post(email: str) -> Any:
        client = APIClient(**anonymous.defaults)
        barrier.wait()
        try:
            return client.post(REGISTER, CARLA | {"email": email})
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(post, ("a@example.org", "b@example.org")), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in answers] == [201, 400]
    assert errors(answers[1]) == {"username": "unique"}


def test_a_name_taken_between_check_and_write_is_400(
    anonymous: APIClient, ann: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = iter([lambda user: None, User.full_clean])  # the first check saw nothing yet
    monkeypatch.setattr(User, "full_clean", lambda user: next(checks)(user))
    answer = anonymous.post(REGISTER, CARLA | {"username": "ann"})
    assert (answer.status_code, errors(answer)) == (400, {"username": "unique"})


def test_registrations_are_limited_by_address(anonymous: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RegistrationThrottle, "bucket", TokenBucket("test-registrations", 2))
    answers = [anonymous.post(REGISTER, {}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [400, 400, 429]
    assert 0 < int(answers[2]["Retry-After"]) <= 30


# --- login, logout ---


def test_login_gives_an_expiring_token(anonymous: APIClient, ann: APIClient) -> None:
    answer = anonymous.post(LOGIN, {"username": "ann", "password": PASSWORD, "name": "laptop"})
    token = Token.objects.get(name="laptop")
    assert answer.status_code == 200
    assert answer.json().keys() == {"token", "expires_at"}
    assert token.digest != answer.json()["token"]
    assert answer.json()["token"] not in str(Token.objects.filter(id=token.id).values().get())
    assert timedelta(days=29) < token.expiry - timezone.now() <= timedelta(days=30)
    assert anonymous.get(ME, HTTP_AUTHORIZATION=f"bearer {answer.json()['token']}").status_code == 200
    assert User.objects.get(username="ann").last_login


@pytest.mark.parametrize(("username", "password"), [("ann", "wrong"), ("nobody", PASSWORD), ("ann@example.org", "x")])
def test_wrong_credentials_are_401_and_do_not_say_which(
    anonymous: APIClient, ann: APIClient, username: str, password: str
) -> None:
    answer = anonymous.post(LOGIN, {"username": username, "password": password})
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")
    assert answer.json()["errors"] == [
        {"code": "authentication_failed", "detail": "Wrong user name or password.", "attr": None}
    ]


def test_an_inactive_user_cannot_log_in_nor_use_a_token(anonymous: APIClient, ann: APIClient) -> None:
    User.objects.update(is_active=False)
    assert anonymous.post(LOGIN, {"username": "ann", "password": PASSWORD}).status_code == 401
    assert ann.get(ME).status_code == 401


def test_failed_logins_are_limited_and_good_ones_are_not(
    anonymous: APIClient, ann: APIClient, bob: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoginThrottle, "bucket", TokenBucket("test-logins", 3))
    good, bad = {"username": "ann", "password": PASSWORD}, {"username": "ann", "password": "wrong"}
    assert {anonymous.post(LOGIN, good).status_code for _ in range(5)} == {200}
    assert [anonymous.post(LOGIN, bad).status_code for _ in range(4)] == [401, 401, 401, 429]
    refused = anonymous.post(LOGIN, good)
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (429, "throttled")
    assert 0 < int(refused["Retry-After"]) <= 20
    assert anonymous.post(LOGIN, {"username": "bob", "password": PASSWORD}).status_code == 200
    assert APIClient(REMOTE_ADDR=uuid4().hex).post(LOGIN, good).status_code == 200


def test_logout_revokes_this_token_only(anonymous: APIClient, ann: APIClient) -> None:
    other = anonymous.post(LOGIN, {"username": "ann", "password": PASSWORD}).json()["token"]
    assert ann.post("/api/v1/auth/logout").status_code == 204
    assert ann.get(ME).status_code == 401
    assert anonymous.get(ME, HTTP_AUTHORIZATION=f"Bearer {other}").status_code == 200


# --- the profile ---


def test_reading_oneself_is_one_query(ann: APIClient, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        assert ann.get(ME).json()["username"] == "ann"


def test_the_profile_can_be_changed(ann: APIClient) -> None:
    change = {"interests": ["chess", "geometry"], "level": "advanced", "language": "pt-BR"}
    answer = ann.patch(ME, change)
    assert answer.status_code == 200
    assert answer.json() == ann.get(ME).json()
    assert change.items() <= answer.json().items()
    assert ann.patch(ME, {"language": "de"}).json()["interests"] == ["chess", "geometry"]
    assert ann.patch(ME, {}).status_code == 200


@pytest.mark.parametrize(
    ("change", "attr"),
    [
        ({"interests": ["x"] * 21}, "interests"),
        ({"interests": ["x" * 51]}, "interests.0"),
        ({"interests": ["fine", ""]}, "interests.1"),
        ({"interests": "chess"}, "interests"),
        ({"interests": None}, "interests"),
        ({"level": "expert"}, "level"),
        ({"language": "english please"}, "language"),
        ({"language": ""}, "language"),
        ({"role": "teacher"}, "role"),
        ({"email": "x@example.org"}, "email"),
    ],
)
def test_a_refused_change_names_the_field_and_changes_nothing(
    ann: APIClient, change: dict[str, Any], attr: str
) -> None:
    before = ann.get(ME).json()
    answer = ann.patch(ME, {"level": "advanced"} | change)
    assert answer.status_code == 400
    assert attr in errors(answer)
    assert ann.get(ME).json() == before


# --- export and erasure ---


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> dict[Any, list[str]]:
    """Another app's data, registered for export and erasure."""
    entries: dict[Any, list[str]] = {}
    monkeypatch.setattr(services, "_exports", {})
    monkeypatch.setattr(services, "_erasures", {})
    services.export_register("diary", lambda user: entries[user.id])
    services.erasure_register("diary", lambda user: entries.pop(user.id))
    return entries


def test_an_export_has_everything_registered_and_no_secret(ann: APIClient, diary: dict[Any, list[str]]) -> None:
    diary[ann.user.id] = ["Größe"]
    body = exported(ann)
    assert body.keys() == {"user", "tokens", "admin_changes", "diary"}
    assert body["diary"] == ["Größe"]
    assert body["user"]["email"] == "ann@example.org"
    assert [token.keys() for token in body["tokens"]] == [{"id", "name", "ending", "created_at", "expiry"}]
    assert "argon2" not in str(body)
    disposition = ann.get("/api/v1/me/export")["Content-Disposition"]
    assert disposition == 'attachment; filename="lyo-export.json"'


def test_erasure_needs_the_password_and_leaves_nothing(
    ann: APIClient, bob: APIClient, diary: dict[Any, list[str]]
) -> None:
    diary.update({ann.user.id: ["mine"], bob.user.id: ["his"]})
    assert errors(ann.delete(ME)) == {"password": "required"}
    assert errors(ann.delete(ME, {"password": "wrong"})) == {"password": "wrong_password"}
    assert ann.get(ME).status_code == 200
    assert ann.delete(ME, {"password": PASSWORD}).status_code == 204
    assert ann.get(ME).status_code == 401
    assert list(User.objects.values_list("username", flat=True)) == ["bob"]
    assert Token.objects.count() == 1
    assert diary == {bob.user.id: ["his"]}


def test_erasure_is_all_or_nothing(ann: APIClient, diary: dict[Any, list[str]]) -> None:
    ann.raise_request_exception = False
    answer = ann.delete(ME, {"password": PASSWORD})  # the diary has no entry: its eraser fails
    assert answer.status_code == 500
    assert ann.get(ME).status_code == 200


# --- roles ---


@pytest.mark.parametrize("role", Role.values)
def test_staff_status_follows_the_role(register: NewClient, role: str) -> None:
    user = register("dora").user
    user.role = role
    user.save()
    user.refresh_from_db()
    assert user.is_staff == (role in ("teacher", "staff"))


def test_a_superuser_is_staff(db: None) -> None:
    root = User.objects.create_superuser("root", "Root@Example.org", PASSWORD)
    assert (root.role, root.is_staff, root.is_superuser, root.email) == ("staff", True, True, "root@example.org")
