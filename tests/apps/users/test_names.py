"""Names and email addresses are unique without regard to case and width, and are checked as they will be stored."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone
from rest_framework.test import APIClient

from apps.users.models import User
from tests.apps.users.conftest import PASSWORD
from tests.helpers import wide

REGISTER, LOGIN = "/api/v1/auth/register", "/api/v1/auth/login"


def codes(answer: Any) -> dict[str, str]:
    return {error["attr"]: error["code"] for error in answer.json()["errors"]}


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["ANN", "Ann", wide("ann"), "aNN"])
def test_another_spelling_of_a_name_is_taken(anonymous: APIClient, ann: APIClient, name: str) -> None:
    answer = anonymous.post(REGISTER, {"username": name, "email": "other@example.org", "password": PASSWORD})
    assert (answer.status_code, codes(answer)) == (400, {"username": "unique"})
    assert len(answer.json()["errors"]) == 1


@pytest.mark.django_db
def test_another_spelling_of_an_address_is_taken(anonymous: APIClient) -> None:
    first = {"username": "zoe", "email": "zoe@straße.example", "password": PASSWORD}
    assert anonymous.post(REGISTER, first).status_code == 201
    assert User.objects.get().email == "zoe@straße.example"  # mail must find it
    again = anonymous.post(REGISTER, {**first, "username": "chloe", "email": "ZOE@strasse.example"})
    assert (again.status_code, codes(again)) == (400, {"email": "unique"})


@pytest.mark.django_db
@pytest.mark.parametrize(
    "change",
    [
        {"username": "\ufdfa" * 20},  # 20 characters, that are 360 once normalised
        {"username": "\ufdfa"},  # has spaces then
        {"username": "ﬃ" * 100},
        {"email": f"ann@{'İ' * 60}.{'İ' * 60}.{'İ' * 60}.{'İ' * 60}.org"},  # lower case is longer
        {"email": f"ann@{'.'.join(['ﷺ' * 10] * 20)}.org"},
    ],
)
def test_what_grows_when_it_is_normalised_is_refused(anonymous: APIClient, change: dict[str, str]) -> None:
    answer = anonymous.post(REGISTER, {"username": "ann", "email": "ann@example.org", "password": PASSWORD} | change)
    assert (answer.status_code, set(codes(answer))) == (400, set(change))
    assert not User.objects.exists()


@pytest.mark.django_db
def test_a_name_is_stored_normalised_and_any_spelling_logs_in(anonymous: APIClient) -> None:
    body = {"username": wide("ZoE"), "email": "zoe@example.org", "password": PASSWORD}
    assert anonymous.post(REGISTER, body).json()["user"]["username"] == "ZoE"
    for name in ("ZoE", "zoe", wide("ZOE")):
        assert anonymous.post(LOGIN, {"username": name, "password": PASSWORD}).status_code == 200


@pytest.mark.django_db
def test_the_database_itself_keeps_names_apart(ann: APIClient) -> None:
    for fields in ({"username": "ANN", "email": "x@example.org"}, {"username": "x", "email": "ANN@example.org"}):
        with pytest.raises(IntegrityError), transaction.atomic():
            User.objects.bulk_create([User(**fields)])
    ann.user.username = "Annabel"
    ann.user.save(update_fields=["username"])
    assert User.objects.get().username_key == "annabel"


@pytest.mark.django_db(transaction=True)
def test_the_migration_gives_younger_accounts_of_a_name_another_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    latest = MigrationExecutor(connection).loader.graph.leaf_nodes("users")
    before = MigrationExecutor(connection)
    before.migrate([("users", "0003_consent_text")])
    users = before.loader.project_state([("users", "0003_consent_text")]).apps.get_model("users", "User")
    now = timezone.now()
    rows = [("Ann", "ann@example.org"), ("ANN", "b@straße.de"), ("ann-2", "b@strasse.de"), ("bob", "bob@example.org")]
    for age, (name, address) in enumerate(reversed(rows)):
        users(id=UUID(int=age + 1), username=name, email=address, date_joined=now - timedelta(days=age)).save()
    try:
        MigrationExecutor(connection).migrate(latest)
        kept = list(User.objects.order_by("date_joined").values_list("username", "username_key", "email", "email_key"))
        assert kept == [
            ("Ann", "ann", "ann@example.org", "ann@example.org"),
            ("ANN-3", "ann-3", "b@straße.de", "b@strasse.de"),
            ("ann-2", "ann-2", *[f"{UUID(int=2)}@duplicate.invalid"] * 2),
            ("bob", "bob", "bob@example.org", "bob@example.org"),
        ]
        said = [line.strip() for line in capsys.readouterr().out.splitlines() if "account" in line]
        assert said == [
            f"account {UUID(int=3)}: 'ANN' is an older account's, this one's is 'ANN-3' now",
            f"account {UUID(int=2)}: 'b@strasse.de' is an older account's, this one's is "
            f"'{UUID(int=2)}@duplicate.invalid' now",
        ]
    finally:
        User.objects.all().delete()
        MigrationExecutor(connection).migrate(latest)
