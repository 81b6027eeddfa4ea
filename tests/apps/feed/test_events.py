"""Events: all or none of a call, each once, in the table of their month."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from apps.content.models import Item
from apps.feed.models import Event, EventKey, Reader, Trend
from apps.feed.services import keys_forget, partitions_ensure, trends_count
from apps.users.models import User
from apps.users.services import user_erase
from lyo import env
from tests.apps.conftest import establish, exported
from tests.apps.feed.conftest import EVENTS, enriched, learner, page, send

pytestmark = pytest.mark.django_db


@pytest.fixture
def item(ann: APIClient) -> Item:
    return enriched("Halves")


def kinds() -> list[str]:
    return sorted(Event.objects.values_list("type", flat=True))


def test_events_are_kept_with_what_they_say(ann: APIClient, item: Item) -> None:
    response = send(
        ann,
        {"item": str(item.id), "type": "impression", "position": 3},
        {"item": str(item.id), "type": "dwell", "seconds": 42},
    )
    assert (response.status_code, response.json()) == (201, {"accepted": 2})
    stayed, shown = Event.objects.order_by("type")
    assert (shown.position, shown.propensity, stayed.seconds) == (3, None, 42.0)
    assert Reader.objects.get().events_at is not None


def test_an_impression_knows_how_probable_it_was(ann: APIClient, item: Item) -> None:
    page(ann)
    send(ann, {"item": str(item.id), "type": "impression", "position": 0})
    assert Event.objects.get().propensity == 1.0


def test_impressions_alone_ask_for_no_scores(ann: APIClient, item: Item) -> None:
    send(ann, {"item": str(item.id), "type": "impression"})
    assert not Reader.objects.exclude(events_at=None).exists()


@pytest.mark.parametrize(
    ("bad", "attr", "detail"),
    [
        ({"type": "nonsense"}, "events.1.type", '"nonsense" is not a valid choice.'),
        ({"type": "dwell"}, "events.1.seconds", "A dwell has seconds."),
        ({"type": "dwell", "seconds": -1}, "events.1.seconds", "Ensure this value is greater than or equal to 0."),
        ({"type": "dwell", "seconds": "nan"}, "events.1.seconds", "A valid number is required."),
        ({"type": "click", "colour": 1}, "events.1.colour", "Unknown field."),
        ({"type": "click", "item": "x"}, "events.1.item", "Must be a valid UUID."),
        ({"type": "click", "item": str(uuid4())}, "events.1.item", None),
    ],
)
def test_a_bad_event_is_named_and_none_is_kept(
    ann: APIClient, item: Item, bad: dict[str, object], attr: str, detail: str | None
) -> None:
    response = send(ann, {"item": str(item.id), "type": "click"}, {"item": str(item.id), **bad})
    (error,) = response.json()["errors"]
    assert (response.status_code, error["attr"]) == (400, attr)
    assert error["detail"] == (detail or f"There is no item {bad['item']}.")
    assert not Event.objects.exists()


def test_a_call_takes_five_hundred(
    ann: APIClient, item: Item, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    events = [{"item": str(item.id), "type": "click", "client_id": str(n)} for n in range(501)]
    assert send(ann, *events).json()["errors"][0]["attr"] == "events"
    with django_assert_num_queries(7):
        assert send(ann, *events[:500]).json() == {"accepted": 500}


def test_a_client_id_counts_once_for_each_learner(ann: APIClient, item: Item) -> None:
    like = {"item": str(item.id), "type": "like", "client_id": "once"}
    accepted = [send(who, *events).json()["accepted"] for who, events in ((ann, [like, like]), (ann, [like]))]
    assert accepted == [1, 0]
    assert send(learner("bob"), like).json() == {"accepted": 1}
    EventKey.objects.update(at=timezone.now() - timedelta(days=31))
    assert keys_forget() == 2


def test_this_month_and_the_next_have_tables_of_their_own(ann: APIClient, item: Item) -> None:
    assert partitions_ensure() == []
    send(ann, {"item": str(item.id), "type": "click"})
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM feed_event")
        assert cursor.fetchone() == (f"feed_event_{timezone.now():%Y_%m}",)
    assert len(partitions_ensure(months=8)) == 2
    Event.objects.create(
        user_id=Reader.objects.get().pk, item=item, type="click", at=timezone.now() - timedelta(days=400)
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM feed_event_rest")
        assert cursor.fetchone() == (1,)


def test_events_of_a_month_whose_table_came_late_are_taken_there(ann: APIClient, item: Item) -> None:
    send(ann, {"item": str(item.id), "type": "click"})
    later = (timezone.now().replace(day=1) + timedelta(days=31 * 9)).replace(day=1)
    Event.objects.create(user_id=Reader.objects.get().pk, item=item, type="like", at=later)

    def table() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SELECT tableoid::regclass::text FROM feed_event WHERE type = 'like'")
            return str(cursor.fetchone()[0])

    assert table() == "feed_event_rest"
    assert f"feed_event_{later:%Y_%m}" in partitions_ensure(months=11)
    assert table() == f"feed_event_{later:%Y_%m}"
    Event.objects.create(user_id=Reader.objects.get().pk, item=item, type="save", at=later)
    assert Event.objects.filter(at=later).count() == 2


def test_one_learner_makes_no_trend_and_counts_no_more_than_others(ann: APIClient, item: Item) -> None:
    other, people = enriched("Thirds"), [learner(f"u{number}") for number in range(3)]
    send(ann, *[{"item": str(item.id), "type": "complete"}] * 100)
    for who in people:
        send(who, {"item": str(other.id), "type": "complete"})
    establish()
    trends_count()
    assert [Trend.objects.get(item=one).score for one in (item, other)] == [0, pytest.approx(1)]
    for who in people[:2]:
        send(who, {"item": str(item.id), "type": "click"})
    trends_count()
    scores = [Trend.objects.get(item=one).score for one in (item, other)]
    assert scores == pytest.approx([1, 1], abs=1e-3)  # seven, one and one are as much as three thrice


def test_the_trend_is_what_learners_take_to_now(ann: APIClient, item: Item) -> None:
    other, old = enriched("Thirds"), enriched("Quarters")
    for who in (ann, learner("bob"), learner("cleo")):
        send(who, {"item": str(item.id), "type": "complete"}, {"item": str(other.id), "type": "click"})
    send(ann, {"item": str(old.id), "type": "click"}, {"item": str(other.id), "type": "impression"})
    Event.objects.filter(item=old).update(at=timezone.now() - timedelta(days=15))
    establish()
    trends_count()
    found = {trend.item_id: trend for trend in Trend.objects.all()}
    assert set(found) == {item.id, other.id}
    assert found[item.id].score == pytest.approx(1)
    assert found[other.id].score == pytest.approx(0.6021, abs=1e-3)  # ln(1 + 3) of ln(1 + 9)
    assert found[other.id].impressions == 1


@pytest.mark.parametrize(("days", "events", "score"), [(7, 10, 1.0), (6, 10, 0.0), (7, 9, 0.0)])
def test_new_or_idle_accounts_make_no_trend(
    ann: APIClient, item: Item, monkeypatch: pytest.MonkeyPatch, days: int, events: int, score: float
) -> None:
    for name in ("u1", "u2", "u3"):
        send(learner(name), *[{"item": str(item.id), "type": "like"}] * events)
    User.objects.filter(username__startswith="u").update(date_joined=timezone.now() - timedelta(days=days, minutes=1))
    send(ann, {"item": str(item.id), "type": "like"})
    trends_count()
    assert Trend.objects.get(item=item).score == score
    assert User.objects.exclude(established_at=None).count() == 3 * score
    monkeypatch.setattr(env, "SIGNAL_ACCOUNT_DAYS", 6)
    monkeypatch.setattr(env, "SIGNAL_ACCOUNT_EVENTS", 9)
    trends_count()
    assert Trend.objects.get(item=item).score == 1.0


def test_they_are_exported_and_erased_with_their_learner(ann: APIClient, item: Item) -> None:
    send(ann, {"item": str(item.id), "type": "like", "client_id": "c"})
    ann.post("/api/v1/feed/follows", {"author": "Tess"})
    feed = exported(ann)["feed"]
    assert feed["follows"] == ["Tess"]
    assert [(event["item"], event["type"]) for event in feed["events"]] == [(str(item.id), "like")]
    user_erase(user=Reader.objects.get().user)
    assert not Event.objects.exists()
    assert not EventKey.objects.exists()


def test_somebody_unknown_may_not_tell_anything() -> None:
    assert APIClient().post(EVENTS, {"events": []}).status_code == 401
