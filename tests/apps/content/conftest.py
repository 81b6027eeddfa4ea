from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Group
from rest_framework.test import APIClient

from apps.content.services import topic_save
from apps.users.models import Role, User

Make = Callable[..., dict[str, Any]]
ITEMS = "/api/v1/content/items"


def client_of(name: str, role: Role = Role.LEARNER) -> APIClient:
    client = APIClient()
    user = User.objects.create_user(name, f"{name}@example.org", role=role, is_staff=role == Role.STAFF)
    client.force_authenticate(user)
    return client


@pytest.fixture
def learner(db: None) -> APIClient:
    return client_of("ann")


@pytest.fixture
def teacher(db: None) -> APIClient:
    return client_of("tess", Role.TEACHER)


@pytest.fixture
def staff(db: None) -> APIClient:
    """A content editor."""
    client = client_of("sid", Role.STAFF)
    User.objects.get(username="sid").groups.add(Group.objects.get(name="content editor"))
    return client


@pytest.fixture
def topics(db: None) -> None:
    division = topic_save(slug="math-division", name="Division", subject="math")
    topic_save(slug="math-fractions", name="Fractions", subject="math", prerequisites=[division], position=1)


@pytest.fixture
def make(teacher: APIClient) -> Make:
    """An item of the teacher's, by the API."""

    def made(**fields: Any) -> dict[str, Any]:
        response = teacher.post(ITEMS, {"title": "Halves", **fields})
        assert response.status_code == 201, response.json()
        return response.json()

    return made
