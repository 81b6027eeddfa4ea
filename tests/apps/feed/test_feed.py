"""The feed as a learner sees it, without workers."""

from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.core.cache import caches
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from apps.common import redis
from apps.content.models import Item
from apps.content.services import item_archive
from apps.feed.models import Ranking, Reader, Weights
from apps.feed.selectors import profile_digest, weights_get
from apps.feed.services import ranking_store
from apps.users.models import User
from tests.apps.feed.conftest import FEED, enriched, learner, page, send, titles

pytestmark = pytest.mark.django_db


def test_a_new_learner_s_feed_is_of_their_interests_and_level_and_mixed(ann: APIClient, catalogue: list[Item]) -> None:
    shown = page(ann)
    assert (len(shown["results"]), shown["state"]) == (20, "cold")
    assert shown["results"][0]["item"]["subject"] == "biology"
    assert shown["results"][0]["item"]["level"] == "beginner"
    assert {"code": "interest", "text": "You are interested in biology."} in shown["results"][0]["reasons"]
    subjects = Counter(entry["item"]["subject"] for entry in shown["results"][:10])
    assert subjects["biology"] == max(subjects.values())
    assert max(subjects.values()) <= 5
    assert len(subjects) >= 4
    assert all(entry["reasons"] for entry in shown["results"])
    assert sum(title.startswith("fun") for title in titles(shown)) == 4  # a fifth


def test_other_interests_and_levels_get_another_feed(ann: APIClient, catalogue: list[Item]) -> None:
    bob = learner("bob", interests=["physics"], level="advanced")
    first = page(bob)["results"][0]["item"]
    assert (first["subject"], first["level"]) == ("physics", "advanced")
    assert titles(page(bob))[:10] != titles(page(ann))[:10]


def test_a_changed_profile_changes_the_feed_at_once(ann: APIClient, catalogue: list[Item]) -> None:
    page(ann)
    ann.patch("/api/v1/me", {"interests": ["chemistry"]})
    assert page(ann)["results"][0]["item"]["subject"] == "chemistry"


def test_pages_have_everything_once_and_stay_as_they_began(ann: APIClient, catalogue: list[Item]) -> None:
    first = page(ann, page_size=25)
    ann.patch("/api/v1/me", {"interests": ["chemistry"]})
    page(ann)  # makes another ranking
    second = ann.get(first["next"]).json()
    third = ann.get(second["next"]).json()
    shown = [title for part in (first, second, third) for title in titles(part)]
    assert len(shown) == len(set(shown)) == 60
    assert third["next"] is None


def newer(ann: APIClient) -> None:
    """Scores come in for what the learner did."""
    reader = Reader.objects.select_related("user").get(user__username="ann")
    now = timezone.now()
    assert ranking_store(user=reader.user, entries=[], origin="scored", until=now, profile=profile_digest(reader.user))
    redis.cache().flushdb()


def test_pages_go_on_however_often_the_learner_is_scored_meanwhile(ann: APIClient, catalogue: list[Item]) -> None:
    first = page(ann, page_size=30)
    for _ in range(10):
        newer(ann)
    ann.patch(f"{FEED}/preferences", {"educational_share": 0})
    second = ann.get(first["next"]).json()
    assert len(set(titles(first) + titles(second))) == 60
    assert Ranking.objects.count() == 4  # the newest three, and the one whose pages are asked for
    Ranking.objects.update(paged_at=timezone.now() - timedelta(minutes=31))
    newer(ann)
    gone = ann.get(first["next"])
    assert (gone.status_code, gone.json()["errors"][0]["code"]) == (410, "cursor_expired")


def test_pages_of_what_is_filtered_go_on_as_they_began(ann: APIClient, catalogue: list[Item]) -> None:
    for number in range(60):  # more than a ranking has of a subject
        enriched(f"more {number:02}", subject="study", level="advanced", quality=0.5 + number / 1000)
    query = {"subject": "study", "page_size": 10}
    undisturbed = page(ann, **query)
    shown = titles(undisturbed) + titles(ann.get(undisturbed["next"]).json())
    first = page(ann, **query)
    send(ann, {"item": first["results"][3]["item"]["id"], "type": "click"})
    Item.objects.filter(title=shown[15]).update(created_at="2020-01-01T00:00:00Z")
    assert titles(first) + titles(ann.get(first["next"]).json()) == shown
    assert ann.get(f"{FEED}/{first['results'][9]['item']['id']}/why").status_code == 200


def test_a_page_made_without_a_worker_does_not_undo_its_scores(ann: APIClient, catalogue: list[Item]) -> None:
    page(ann)
    newer(ann)
    scored, user = Ranking.objects.get(origin="scored"), User.objects.get(username="ann")
    cold: dict[str, Any] = {"user": user, "entries": [], "origin": "cold", "profile": "", "until": timezone.now()}
    assert ranking_store(**cold, after=scored.number - 1) is None
    assert ranking_store(**cold, after=scored.number) is not None


def test_the_learner_sets_the_mix_for_once_or_for_good(ann: APIClient, catalogue: list[Item]) -> None:
    assert all(title.startswith("fun") for title in titles(page(ann, educational_share=0)))
    assert not any(title.startswith("fun") for title in titles(page(ann, educational_share=1)))
    assert ann.patch(f"{FEED}/preferences", {"educational_share": 0.5}).json() == {"educational_share": 0.5}
    assert ann.get(f"{FEED}/preferences").json() == {"educational_share": 0.5}
    assert ann.patch(f"{FEED}/preferences", {}).json() == {"educational_share": 0.5}
    assert sum(title.startswith("fun") for title in titles(page(ann))) == 10
    for bad in (2, "nan"):
        assert ann.patch(f"{FEED}/preferences", {"educational_share": bad}).status_code == 400
        assert ann.get(FEED, {"educational_share": bad}).status_code == 400


def test_without_a_profile_all_get_the_same(ann: APIClient, catalogue: list[Item]) -> None:
    bob = learner("bob", interests=["physics"])
    send(bob, {"item": str(catalogue[0].id), "type": "hide"})
    shown = page(ann, profile="off")
    assert shown["state"] == "general"
    assert titles(shown) == titles(page(bob, profile="off"))
    second = ann.get(shown["next"]).json()
    assert not set(titles(shown)) & set(titles(second))


def test_what_is_completed_hidden_or_archived_is_gone_at_once(ann: APIClient, catalogue: list[Item]) -> None:
    done, hidden, archived = (entry["item"]["id"] for entry in page(ann)["results"][:3])
    send(ann, {"item": done, "type": "complete"}, {"item": hidden, "type": "hide"})
    item_archive(items=Item.objects.filter(id=archived))
    caches["process"].clear()  # as seconds later
    shown = {entry["item"]["id"] for entry in page(ann, page_size=100)["results"]}
    assert len(shown) == 57
    assert not {done, hidden, archived} & shown


def test_filters_leave_only_what_fits(ann: APIClient, catalogue: list[Item]) -> None:
    shown = page(ann, subject="physics", level="advanced", educational_share=1)
    assert sorted(titles(shown)) == ["physics 2", "physics 5", "physics 8"]
    assert page(ann, subject="study")["results"] == []


def test_a_learner_whom_no_worker_has_scored_gets_what_is_known_and_is_told(
    ann: APIClient, catalogue: list[Item]
) -> None:
    send(ann, {"item": str(catalogue[0].id), "type": "click"})
    assert page(ann)["state"] == "trending"


def test_scores_that_are_too_old_are_called_stale(ann: APIClient, catalogue: list[Item]) -> None:
    page(ann)
    send(ann, {"item": str(catalogue[0].id), "type": "click"})
    Ranking.objects.update(origin="scored")
    redis.cache().flushdb()
    Reader.objects.update(events_at="2026-01-01T00:00:00Z", scored_until="2025-12-31T00:00:00Z")
    assert page(ann)["state"] == "stale"
    Reader.objects.update(scored_until="2026-01-01T00:00:00Z")
    assert page(ann)["state"] == "scored"


def test_with_redis_away_the_feed_comes_from_postgres(
    ann: APIClient, catalogue: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = titles(page(ann))
    monkeypatch.setattr("apps.common.redis.cache", _away)
    assert titles(page(ann)) == before


def _away() -> None:
    from redis.exceptions import ConnectionError as Lost

    raise Lost("away")


def test_why_has_each_part_and_they_add_up(ann: APIClient, catalogue: list[Item]) -> None:
    first = page(ann)["results"][0]
    why = ann.get(f"{FEED}/{first['item']['id']}/why").json()
    parts = {part["name"]: part for part in why["parts"]}
    assert parts["interest"] == {"name": "interest", "value": 1.0, "weight": 0.6, "contribution": 0.6}
    assert parts["level"]["contribution"] == 0.4
    assert parts["educational"]["contribution"] == pytest.approx(0.4 * 0.9)
    assert why["score"] == pytest.approx(sum(part["contribution"] for part in parts.values()), abs=1e-3)
    assert why["reasons"] == first["reasons"]
    assert ann.get(f"{FEED}/{uuid4()}/why").status_code == 404


def test_weights_are_data(ann: APIClient, catalogue: list[Item]) -> None:
    best = enriched("the best made", quality=1.0)
    assert titles(page(ann))[0] != best.title
    Weights.objects.create(**{**dict.fromkeys(weights_get(), 0.0), "quality": 2.0})
    caches["process"].clear()
    assert titles(page(ann))[0] == best.title
    why = ann.get(f"{FEED}/{best.id}/why").json()
    assert {part["name"]: part["weight"] for part in why["parts"]}["quality"] == 2
    assert why["score"] == 2


def test_what_is_in_the_learner_s_language_and_by_whom_they_follow_comes_first(
    ann: APIClient, catalogue: list[Item]
) -> None:
    enriched("auf Deutsch", subject="biology", level="beginner", language="de-AT")
    enriched("by Tess", subject="study", level="advanced", author="Tess")
    assert titles(page(ann, page_size=100, educational_share=1))[-1] == "auf Deutsch"
    assert titles(page(ann))[0] != "by Tess"
    ann.post(f"{FEED}/follows", {"author": "Tess"})
    Weights.objects.create(followed=5)
    caches["process"].clear()
    first = page(ann)["results"][0]
    assert (first["item"]["title"], first["reasons"][0]["text"]) == ("by Tess", "By Tess, whom you follow.")
    bea = learner("bea", interests=["biology"], level="beginner", language="de")
    assert titles(page(bea))[0] == "auf Deutsch"


def test_what_is_known_without_a_worker_is_looked_up_anew(ann: APIClient, db: None) -> None:
    assert page(ann)["results"] == []
    enriched("the first", subject="biology")
    assert titles(page(ann)) == ["the first"]  # an empty feed does not last
    enriched("the second", subject="biology")
    assert titles(page(ann)) == ["the first"]
    Ranking.objects.update(made_at=timezone.now() - timedelta(minutes=6))
    redis.cache().flushdb()
    assert sorted(titles(page(ann))) == ["the first", "the second"]


def test_what_was_shown_often_and_left_is_left_out_before_a_worker_scores(
    ann: APIClient, catalogue: list[Item]
) -> None:
    first = page(ann)["results"][0]["item"]
    send(ann, *[{"item": first["id"], "type": "impression"}] * 5)
    Ranking.objects.update(made_at=timezone.now() - timedelta(minutes=6))
    redis.cache().flushdb()
    assert first["title"] not in titles(page(ann, page_size=100))


@pytest.mark.parametrize(
    ("query", "attr"),
    [
        ({"educational_share": "2"}, "educational_share"),
        ({"profile": "maybe"}, "profile"),
        ({"subject": "magic"}, "subject"),
        ({"page_size": "0"}, "page_size"),
        ({"cursor": "abc"}, "cursor"),
    ],
)
def test_a_bad_parameter_is_named(ann: APIClient, query: dict[str, str], attr: str) -> None:
    response = ann.get(FEED, query)
    assert (response.status_code, response.json()["errors"][0]["attr"]) == (400, attr)


def test_a_feed_of_nothing_is_empty(ann: APIClient) -> None:
    assert page(ann) == {"next": None, "results": [], "state": "cold"}


def test_a_page_costs_few_queries(
    ann: APIClient, catalogue: list[Item], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    page(ann)
    page(ann)  # by now the ranking is in Redis
    with django_assert_num_queries(1):  # the reader; the token is not asked for here
        page(ann)
    caches["process"].clear()
    with django_assert_num_queries(5):  # and weights, cards and their topics; and it is noted that pages are asked for
        page(ann)
    send(ann, {"item": str(catalogue[0].id), "type": "click"})
    with django_assert_num_queries(2):  # and what was ended since the ranking
        page(ann)


def test_follows_are_kept_once(ann: APIClient) -> None:
    assert ann.post(f"{FEED}/follows", {"author": "Tess"}).json() == {"authors": ["Tess"]}
    assert ann.post(f"{FEED}/follows", {"author": "Tess"}).json() == {"authors": ["Tess"]}
    assert ann.delete(f"{FEED}/follows?author=Tess").status_code == 204
    assert ann.get(f"{FEED}/follows").json() == {"authors": []}


def test_who_follows_or_does_no_more_is_scored_again(ann: APIClient, catalogue: list[Item]) -> None:
    def changes(method: str) -> bool:
        before = Reader.objects.get().events_at
        getattr(ann, method)(f"{FEED}/follows?author=Tess", {"author": "Tess"})
        return Reader.objects.get().events_at > before

    send(ann, {"item": str(catalogue[0].id), "type": "click"})
    assert [changes(method) for method in ("post", "post", "delete", "delete")] == [True, False, True, False]
