from typing import Any

import pytest
from django.core.cache import caches
from django.utils import timezone
from rest_framework.test import APIClient

from apps.common import redis
from apps.content.models import Enrichment, Item
from apps.content.services import item_create
from tests.apps.content.conftest import client_of

FEED, EVENTS = "/api/v1/feed", "/api/v1/feed/events"
SUBJECTS = ("math", "physics", "chemistry", "biology", "programming")


def enriched(title: str, *, place: int = 0, **fields: Any) -> Item:
    """A published item that models have read; its embedding points along axis `place`."""
    about = {name: fields.pop(name) for name in ("educational", "quality") if name in fields}
    item = item_create(user=None, title=title, **fields)
    Enrichment.objects.create(
        item=item,
        source=item.source,
        models_digest="m",
        enriched_at=timezone.now(),
        embedding=[float(axis == place) for axis in range(384)],
        level=item.level or "beginner",
        **{"educational": 0.9, "quality": 0.8, **about},
    )
    return item


@pytest.fixture
def ann(db: None, monkeypatch: pytest.MonkeyPatch) -> APIClient:
    monkeypatch.setattr(redis, "_outage_ends", 0.0)
    caches["process"].clear()
    redis.cache().flushdb()
    return learner("ann", interests=["biology"])


@pytest.fixture
def catalogue(ann: APIClient) -> list[Item]:
    """Ten lessons of each of five subjects, at three levels, and ten entertaining items."""
    levels = ("beginner", "intermediate", "advanced")
    lessons = [
        enriched(
            f"{subject} {number}", place=axis, subject=subject, level=levels[number % 3], author=f"{subject} press"
        )
        for axis, subject in enumerate(SUBJECTS)
        for number in range(10)
    ]
    fun = [enriched(f"fun {number}", place=9, educational=0.1, level="beginner") for number in range(10)]
    return lessons + fun


def learner(name: str, **profile: Any) -> APIClient:
    client = client_of(name)
    if profile:
        assert client.patch("/api/v1/me", profile).status_code == 200
    return client


def page(client: APIClient, **query: Any) -> dict[str, Any]:
    response = client.get(FEED, query)
    assert response.status_code == 200, response.json()
    return {**response.json(), "state": response.headers["X-Lyo-Feed"]}


def titles(shown: dict[str, Any]) -> list[str]:
    return [entry["item"]["title"] for entry in shown["results"]]


def send(client: APIClient, *events: dict[str, Any]) -> Any:
    return client.post(EVENTS, {"events": list(events)})
