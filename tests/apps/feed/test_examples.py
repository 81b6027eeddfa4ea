"""What learners do with items becomes examples of engagement, of those who agreed and from then on."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from apps.content.models import Item
from apps.feed.models import Event
from apps.training.models import Collection, Example
from apps.training.services.data import examples_collect
from apps.users.models import User
from apps.users.services import user_erase
from tests.apps.feed.conftest import enriched

pytestmark = pytest.mark.django_db

NOW = timezone.now() - timedelta(hours=1)  # what is collected has settled


@pytest.fixture
def bob(ann: APIClient) -> User:
    """A learner from whom models may learn."""
    consent = {"birth_year": 1990, "training_consented_at": NOW - timedelta(days=1)}
    return User.objects.create_user("bob", "bob@example.org", interests=["physics", "Bob"], **consent)


@pytest.fixture
def item(ann: APIClient) -> Item:
    return enriched("Levers", subject="physics", kind="video", duration=240, tags=["forces"])


def did(user: User, item: Item, kind: str, *, minutes: float = 0, **fields: Any) -> None:
    Event.objects.create(user=user, item=item, type=kind, at=NOW + timedelta(minutes=minutes), **fields)


def engagements() -> list[float]:
    return [example.content["expected_engagement"] for example in Example.objects.order_by("created_at")]


def test_an_example_tells_item_learner_and_how_much_they_took_to_it(bob: User, item: Item) -> None:
    did(bob, item, "impression")
    did(bob, item, "complete", minutes=1)
    assert dict(examples_collect(source="feed")) == {"added": 1}
    example = Example.objects.get()
    assert (example.format, example.task, example.subject) == ("engagement", "engagement", "physics")
    assert example.content == {
        "content": {"type": "video", "subject": "physics", "duration": 240, "tags": ["forces"]},
        "user_profile": {"interests": ["physics", "<PERSON>"], "level": "beginner"},
        "expected_engagement": 1.0,
    }
    assert (example.learner, example.source) == (bob, "feed")


@pytest.mark.parametrize(
    ("events", "engagement"),
    [
        ([("impression", {})], 0.0),
        ([("impression", {}), ("click", {})], 0.33),
        ([("click", {}), ("dwell", {"seconds": 45})], 0.5),
        ([("save", {})], 0.67),
        ([("like", {}), ("hide", {})], 0.0),
    ],
)
def test_what_was_done_counts_once_the_strongest(
    bob: User, item: Item, events: list[tuple[str, dict[str, float]]], engagement: float
) -> None:
    for minute, (kind, fields) in enumerate(events):
        did(bob, item, kind, minutes=minute, **fields)
    examples_collect(source="feed")
    assert engagements() == [engagement]


def test_what_is_done_later_replaces_the_example(bob: User, item: Item) -> None:
    did(bob, item, "impression")
    examples_collect(source="feed")
    Event.objects.create(user=bob, item=item, type="like", at=timezone.now() - timedelta(seconds=31))
    assert engagements() == [0.0]
    rewound = timezone.now() - timedelta(minutes=2)
    Collection.objects.update(until=rewound)
    assert dict(examples_collect(source="feed")) == {"changed": 1}
    assert engagements() == [1.0]
    assert dict(examples_collect(source="feed")) == {}


def test_only_of_those_who_agreed_from_then_on_and_until_they_leave(bob: User, item: Item) -> None:
    other = enriched("Pulleys", subject="physics")
    did(bob, other, "like", minutes=-25 * 60)
    did(User.objects.get(username="ann"), item, "like")
    assert dict(examples_collect(source="feed")) == {}
    did(bob, item, "like")
    Collection.objects.all().delete()
    assert dict(examples_collect(source="feed")) == {"added": 1}
    user_erase(user=bob)
    assert not Example.objects.exists()
