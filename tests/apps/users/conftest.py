from collections.abc import Callable
from uuid import uuid4

import pytest
from rest_framework.test import APIClient

from apps.users import services

PASSWORD = "correct-horse-9-battery"
NewClient = Callable[[str], APIClient]


@pytest.fixture
def anonymous() -> APIClient:
    """A client at an address of its own, so that tests do not use up each other's limits."""
    return APIClient(REMOTE_ADDR=uuid4().hex)


@pytest.fixture
def register(db: None) -> NewClient:
    """Makes a learner and returns a client with their token."""

    def make(name: str) -> APIClient:
        user, token = services.user_register(username=name, email=f"{name}@example.org", password=PASSWORD)
        client = APIClient(REMOTE_ADDR=uuid4().hex, HTTP_AUTHORIZATION=f"Bearer {token}")
        client.user = user
        return client

    return make


@pytest.fixture
def ann(register: NewClient) -> APIClient:
    return register("ann")


@pytest.fixture
def bob(register: NewClient) -> APIClient:
    return register("bob")
