"""The feed as a learner sees it, without workers."""

from collections import Counter
from uuid import uuid4

import pytest
from django.core.cache import caches
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from apps.common import redis
from apps.content.models import Item
from apps.content.services import item_archive
from apps.feed.models import Ranking, Reader, Weights
from tests.apps.feed.conftest import FEED, learner, page, send, titles

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


def test_the_learner_sets_the_mix_for_once_or_for_good(ann: APIClient, catalogue: list[Item]) -> None:
    assert all(title.startswith("fun") for title in titles(page(ann, educational_share=0)))
    assert not any(title.startswith("fun") for title in titles(page(ann, educational_share=1)))
    assert ann.patch(f"{FEED}/preferences", {"educational_share": 0.5}).json() == {"educational_share": 0.5}
    assert ann.get(f"{FEED}/preferences").json() == {"educational_share": 0.5}
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
    page(ann)
    Weights.objects.create(interest=0, level=0, quality=0, freshness=0, same_subject=0, same_author=0, educational=-1)
    caches["process"].clear()
    assert titles(page(ann, educational_share=0.5))[0].startswith(("math", "fun", "physics", "chem", "prog", "biology"))
    why = ann.get(f"{FEED}/{page(ann)['results'][0]['item']['id']}/why").json()
    assert {part["name"]: part["weight"] for part in why["parts"]}["educational"] == -1


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
    with django_assert_num_queries(4):  # and weights, cards and their topics
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
