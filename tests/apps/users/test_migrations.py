"""What becomes of accounts and groups that were there before teachers had a desk."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from apps.users.models import User

pytestmark = pytest.mark.django_db(transaction=True)

BEFORE = [("users", "0003_consent_text")]


def migrate(targets: list[tuple[str, str]]) -> Any:
    executor = MigrationExecutor(connection)
    return executor.migrate(targets).apps


@pytest.fixture
def old() -> Iterator[Any]:
    """The models as they were; in the end, the tables are as they are."""
    latest = MigrationExecutor(connection).loader.graph.leaf_nodes("users")
    Group.objects.all().delete()
    yield migrate(BEFORE)
    migrate(latest)


def test_a_teacher_of_before_may_enter_and_a_group_whose_name_is_taken_gets_nothing(old: Any) -> None:
    user = old.get_model("users", "User")
    for role in ("learner", "teacher", "staff"):
        user.objects.create(username=role, email=f"{role}@example.org", role=role, is_staff=role == "staff")
    Group.objects.create(name="operator")
    migrate(MigrationExecutor(connection).loader.graph.leaf_nodes("users"))
    assert dict(User.objects.values_list("username", "is_staff")) == {"learner": False, "teacher": True, "staff": True}
    assert User.objects.get(username="teacher").has_perm("content.add_item")
    assert not Group.objects.get(name="operator").permissions.exists()
    assert Group.objects.get(name="model owner").permissions.filter(codename="change_route").exists()
