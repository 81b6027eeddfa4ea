import re
from io import StringIO
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from apps.common.throttles import LoginThrottle, TokenBucket
from apps.content.models import Item
from apps.feed.models import Event
from apps.tutor.models import Conversation, Feedback, Message
from apps.users import services
from apps.users.models import Role, Token, User
from lyo import env
from tests.apps.users.conftest import PASSWORD
from tests.helpers import wide

pytestmark = pytest.mark.django_db

USERS = "/admin/users/user/"


@pytest.fixture
def root() -> Client:
    """A superuser who has logged in on the admin's own page."""
    User.objects.create_superuser("root", "root@example.org", PASSWORD)
    client = Client(REMOTE_ADDR=uuid4().hex)
    answer = client.post("/admin/login/?next=/admin/", {"username": "root", "password": PASSWORD})
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")
    return client


def test_the_desk_lists_filters_and_finds_users(root: Client, ann: APIClient) -> None:
    assert "ann@example.org" in root.get(USERS).content.decode()
    assert "ann@example.org" not in root.get(USERS, {"role__exact": "teacher"}).content.decode()
    assert "ann@example.org" in root.get(USERS, {"q": "ANN"}).content.decode()
    assert root.get("/admin/auth/group/").status_code == 200


def test_a_users_page_shows_no_password_hash_and_no_digest(root: Client, ann: APIClient) -> None:
    page = root.get(f"{USERS}{ann.user.id}/change/").content.decode()
    assert "ann@example.org" in page
    assert "argon2" not in page
    assert Token.objects.get(user=ann.user).digest not in page
    assert root.get(f"{USERS}{ann.user.id}/password/").status_code == 200


def test_staff_make_a_teacher_and_revoke_a_token(root: Client, ann: APIClient) -> None:
    token = Token.objects.get(user=ann.user)
    form = {
        "username": "ann",
        "email": "ann@example.org",
        "role": "teacher",
        "is_active": "on",
        "interests": "chess,maps",
        "level": "advanced",
        "language": "en",
        "auth_token_set-TOTAL_FORMS": "1",
        "auth_token_set-INITIAL_FORMS": "1",
        "auth_token_set-0-id": str(token.id),
        "auth_token_set-0-user": str(ann.user.id),
        "auth_token_set-0-DELETE": "on",
    }
    assert root.post(f"{USERS}{ann.user.id}/change/", form).status_code == 302
    ann.user.refresh_from_db()
    assert (ann.user.role, ann.user.interests) == ("teacher", ["chess", "maps"])
    assert ann.get("/api/v1/me").status_code == 401


def test_staff_add_a_user(root: Client) -> None:
    form = {
        "username": "dora",
        "email": "Dora@Example.org",
        "role": "staff",
        "usable_password": "true",
        "password1": PASSWORD,
        "password2": PASSWORD,
    }
    assert root.get(f"{USERS}add/").status_code == 200
    assert root.post(f"{USERS}add/", form).status_code == 302
    dora = User.objects.get(username="dora")
    assert (dora.email, dora.is_staff, dora.check_password(PASSWORD)) == ("dora@example.org", True, True)


def test_all_tokens_of_the_chosen_users_are_revoked(root: Client, ann: APIClient, bob: APIClient) -> None:
    root.post(USERS, {"action": "revoke_tokens", "_selected_action": [str(ann.user.id)]})
    assert (ann.get("/api/v1/me").status_code, bob.get("/api/v1/me").status_code) == (401, 200)


def test_deleting_in_the_admin_erases_as_the_user_would(root: Client, ann: APIClient, bob: APIClient) -> None:
    assert root.post(f"{USERS}{ann.user.id}/delete/", {"post": "yes"}).status_code == 302
    root.post(USERS, {"action": "delete_selected", "_selected_action": [str(bob.user.id)], "post": "yes"})
    assert list(User.objects.values_list("username", flat=True)) == ["root"]


def test_what_goes_with_a_user_is_counted_and_not_read(
    root: Client, ann: APIClient, bob: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "user_erase", lambda user: None)
    item = Item.objects.create(title="Halves", user=ann.user)
    Event.objects.bulk_create(Event(user=user, item=item, type="click") for user in [ann.user] * 3 + [bob.user])
    talk = Conversation.objects.create(user=ann.user)
    message = Message.objects.create(conversation=talk, position=0, role="user")
    Feedback.objects.create(message=message, rating="up")
    ours = {"users": 1, "tokens": 1, "events": 3, "conversations": 1, "messages": 1, "feedbacks": 1}
    chosen = {"action": "delete_selected", "_selected_action": [ann.user.id, bob.user.id]}
    with CaptureQueriesContext(connection) as queries:
        one = root.get(f"{USERS}{ann.user.id}/delete/").context
        both = root.post(USERS, chosen).context
        root.post(f"{USERS}{ann.user.id}/delete/", {"post": "yes"})
        root.post(USERS, {**chosen, "post": "yes"})
    assert (dict(one["model_count"]), one["deleted_objects"]) == (ours, ["ann"])
    assert dict(both["model_count"]) == {**ours, "users": 2, "tokens": 2, "events": 4}
    assert [sorted(names) for names in both["deletable_objects"]] == [["ann", "bob"]]
    reads = [query["sql"] for query in queries if re.search("FROM .(feed|tutor|jobs|training)_", query["sql"])]
    assert reads
    assert all(sql.startswith("SELECT COUNT(*)") for sql in reads)


def test_ordinary_staff_cannot_make_themselves_superusers(root: Client, ann: APIClient) -> None:
    User.objects.filter(id=ann.user.id).update(role=Role.STAFF, is_staff=True)
    ann.user.user_permissions.set(Permission.objects.filter(content_type__app_label="users"))
    clerk = Client(REMOTE_ADDR=uuid4().hex)
    clerk.login(username="ann", password=PASSWORD)
    page = clerk.get(f"{USERS}{ann.user.id}/change/").content.decode()
    assert 'name="level"' in page
    assert 'name="role"' not in page
    assert 'name="is_superuser"' not in page
    assert 'name="user_permissions"' not in page
    superuser = User.objects.get(username="root")
    assert clerk.post(f"{USERS}{superuser.id}/change/", {}).status_code == 403
    assert clerk.get(f"{USERS}{superuser.id}/password/").status_code == 403
    assert clerk.post(f"{USERS}{superuser.id}/delete/", {"post": "yes"}).status_code == 403
    for action in ("delete_selected", "revoke_tokens"):
        services.token_create(user=superuser)
        clerk.post(USERS, {"action": action, "_selected_action": [str(superuser.id)], "post": "yes"})
        assert Token.objects.filter(user=superuser).exists()
    assert clerk.get("/admin/auth/group/").status_code == 403


def test_who_is_no_superuser_touches_no_superuser_whatever_their_role(root: Client, ann: APIClient) -> None:
    clerk = User.objects.create_user("cleo", "cleo@example.org", PASSWORD, role=Role.STAFF)
    clerk.user_permissions.set(Permission.objects.filter(content_type__app_label="users"))
    client = Client(REMOTE_ADDR=uuid4().hex)
    client.force_login(clerk)
    teacher = User.objects.create_user("tess", "tess@example.org", PASSWORD, role=Role.TEACHER)
    assert client.get(f"{USERS}{teacher.id}/password/").status_code == 200
    User.objects.filter(id=teacher.id).update(is_superuser=True)
    assert client.get(f"{USERS}{teacher.id}/password/").status_code == 403
    assert client.post(f"{USERS}{teacher.id}/delete/", {"post": "yes"}).status_code == 403


def test_a_learner_cannot_enter_and_guesses_are_limited(
    root: Client, ann: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoginThrottle, "bucket", TokenBucket("test-admin", 2))
    client = Client(REMOTE_ADDR=uuid4().hex)
    learner, guess = {"username": "ann", "password": PASSWORD}, {"username": "root", "password": "guess"}
    assert client.post("/admin/login/", learner).status_code == 200  # the form again
    pages = [client.post("/admin/login/", guess).content.decode() for _ in range(3)]
    assert ["Too many failed attempts" in page for page in pages] == [False, False, True]
    assert client.post("/admin/login/", {**guess, "password": PASSWORD}).status_code == 200
    spelt = {**guess, "username": wide("ROOT")}
    assert "Too many failed attempts" in client.post("/admin/login/", spelt).content.decode()


def test_the_desk_takes_any_spelling_of_a_name_and_makes_none_twice(root: Client, ann: APIClient) -> None:
    again = Client(REMOTE_ADDR=uuid4().hex)
    assert again.post("/admin/login/?next=/admin/", {"username": "Root", "password": PASSWORD}).status_code == 302
    form = {"usable_password": "true", "role": "learner", "password1": PASSWORD, "password2": PASSWORD}
    for name, email in ((wide("ANN"), "new@example.org"), ("nora", "ann@EXAMPLE.org")):
        page = root.post(f"{USERS}add/", form | {"username": name, "email": email})
        assert (page.status_code, "already exists" in page.content.decode()) == (200, True)
    page = root.post(f"{USERS}add/", form | {"username": "\ufdfa" * 20, "email": "long@example.org"})
    assert page.status_code == 200
    assert User.objects.count() == 2


# --- demo accounts ---


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    local = {
        "admin_username": "boss",
        "admin_password": "printed-at-the-start",
        "database_url": env.DATABASE_URL,
    }
    monkeypatch.setattr(env, "local", lambda key: local.get(key, ""))
    return local


def seeded(*options: str) -> list[str]:
    said = StringIO()
    call_command("seed_demo", *options, stdout=said)
    return said.getvalue().splitlines()


def test_demo_accounts_are_made_once_with_the_printed_password(demo: dict[str, str]) -> None:
    assert seeded()[0] == "boss (staff): made"
    assert seeded()[0] == "boss (staff): there"
    boss = User.objects.get(username="boss")
    assert (boss.is_superuser, boss.is_staff, boss.check_password("printed-at-the-start")) == (True, True, True)
    assert sorted(User.objects.values_list("role", flat=True)) == ["learner", "learner", "staff", "teacher"]


def test_seeding_never_resets_a_password_that_was_changed(demo: dict[str, str]) -> None:
    seeded()
    boss = User.objects.get(username="boss")
    boss.set_password(PASSWORD)
    boss.save()
    token = services.token_create(user=boss)[0]
    assert seeded()[0] == "boss (staff): there, with a password of its own"
    assert User.objects.get(username="boss").check_password(PASSWORD)
    assert Token.objects.filter(id=token.id).exists()


def test_no_demo_accounts_on_a_real_server_unless_asked(demo: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "DATABASE_URL", "postgres://lyo:secret@db.example.org/lyo")
    (line,) = seeded()
    assert line == "LYO_DATABASE_URL names a real server: no demo accounts there without --real."
    assert not User.objects.exists()
    assert seeded("--real")[0] == "boss (staff): made"


def test_seeding_leaves_alone_who_has_a_demo_name_already(demo: dict[str, str]) -> None:
    User.objects.create_user("ADA", "lovelace@example.org", PASSWORD)
    assert "ada (learner): the name is somebody else's, left alone" in seeded()
    assert User.objects.get(username="ADA").check_password(PASSWORD)


def test_without_a_local_stack_nothing_is_seeded(demo: dict[str, str]) -> None:
    del demo["admin_password"]
    with pytest.raises(CommandError, match="demo credentials"):
        call_command("seed_demo")
    assert not User.objects.exists()


def test_a_new_password_ends_all_tokens(root: Client, ann: APIClient) -> None:
    form = {"usable_password": "true", "password1": "another-horse-7-battery", "password2": "another-horse-7-battery"}
    assert root.post(f"{USERS}{ann.user.id}/password/", form).status_code == 302
    assert ann.get("/api/v1/me").status_code == 401
