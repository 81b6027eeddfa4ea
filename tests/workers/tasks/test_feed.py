"""The feed's tasks: learners are scored from what they did, and a ranker is learned that must be better to go live."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from apps.content.models import Enrichment, Item, Topic
from apps.content.services import item_create, topic_save
from apps.feed import selectors
from apps.feed.models import Event, Ranker, Ranking, Reader
from apps.feed.services import ranker_request, ranking_store, scores_request
from apps.jobs.models import Job, State
from apps.users.models import User
from apps.users.services import user_erase
from tests.apps.feed.conftest import enriched, learner, page, send, titles
from workers.scoring.feed import model
from workers.scoring.feed.interactions import Interactions
from workers.tasks import feed

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    feed._state = None  # a catalogue of another test


def work(kind: str = "score_feed") -> Job:
    """Execute the job that is queued on this thread, as its worker would."""
    job = Job.objects.get(kind=kind, state=State.QUEUED)
    {"score_feed": feed.score_feed, "fit_feed": feed.fit_feed}[kind](str(job.id))
    job.refresh_from_db()
    return job


def does(client: APIClient, item: Item, *kinds: str) -> None:
    assert send(client, *({"item": str(item.id), "type": kind} for kind in kinds)).status_code == 201


def test_a_feed_turns_toward_what_was_done_and_says_so(ann: APIClient, catalogue: list[Item]) -> None:
    physics = [item for item in catalogue if item.subject == "physics"]
    before = [entry["item"]["subject"] for entry in page(ann)["results"][:10]].count("physics")
    for item in physics[:3]:
        does(ann, item, "click", "complete")
    assert len(scores_request()) == 1
    assert work().result == {"learners": 1}
    shown = page(ann)
    assert shown["state"] == "scored"
    of_physics = [entry for entry in shown["results"][:10] if entry["item"]["subject"] == "physics"]
    assert len(of_physics) > before
    similar = {"code": "similar", "text": "It is like “physics 2”, which you took to."}
    assert any(similar in entry["reasons"] for entry in of_physics)
    assert not {item.title for item in physics[:3]} & set(titles(page(ann, page_size=100)))


def test_a_subject_that_was_taken_to_is_an_interest_by_its_share(ann: APIClient, catalogue: list[Item]) -> None:
    physics, programming = ([item for item in catalogue if item.subject == name] for name in ("physics", "programming"))
    for item in (programming[0], *physics[:2]):  # of weights 3, and an earlier one counts for 0.8 of the one after it
        does(ann, item, "complete")
    scores_request()
    work()

    def interest(item: Item) -> float:
        parts = ann.get(f"/api/v1/feed/{item.id}/why").json()["parts"]
        return float(next(part["value"] for part in parts if part["name"] == "interest"))

    of_physics, of_programming = 3 + 3 * 0.8, 3 * 0.64
    whole = of_physics + of_programming + 3
    assert interest(physics[5]) == pytest.approx(of_physics / whole, abs=1e-4)
    assert interest(programming[5]) == pytest.approx(of_programming / whole, abs=1e-4)
    assert ann.patch("/api/v1/me", {"interests": ["physics"]}).status_code == 200
    does(ann, physics[2], "click")
    scores_request()
    work()
    assert interest(physics[5]) == 1


def test_who_did_nothing_new_is_not_scored_again(ann: APIClient, catalogue: list[Item]) -> None:
    does(ann, catalogue[0], "click")
    assert len(scores_request()) == 1
    assert scores_request() == []
    work()
    assert scores_request() == []
    does(ann, catalogue[1], "click")
    assert len(scores_request()) == 1


def test_once_a_day_those_who_were_there_lately_get_the_new_items(ann: APIClient, catalogue: list[Item]) -> None:
    does(ann, catalogue[10], "click")
    scores_request()
    work()
    enriched("brand new", place=1, subject="physics", level="beginner")
    feed._state = None
    Reader.objects.update(requested_at=timezone.now() - timedelta(days=1, seconds=1))
    assert len(scores_request()) == 1
    work()
    assert "brand new" in titles(page(ann, page_size=100))
    Reader.objects.update(
        requested_at=timezone.now() - timedelta(days=40),
        events_at=timezone.now() - timedelta(days=31),
        scored_until=timezone.now() - timedelta(days=31),
    )
    assert scores_request() == []


def test_a_scorer_that_knows_less_does_not_undo_another(ann: APIClient, catalogue: list[Item]) -> None:
    does(ann, catalogue[0], "click")
    scores_request()
    work()
    kept = Ranking.objects.get(user__username="ann")
    user = User.objects.get(username="ann")
    old: dict[str, Any] = {"user": user, "entries": [], "origin": "scored", "profile": ""}
    assert ranking_store(**old, until=kept.until - timedelta(seconds=1)) is None
    assert Ranking.objects.get(user=user) == kept
    assert ranking_store(**old, until=kept.until) is not None


def test_a_lost_worker_s_learners_are_asked_for_again(ann: APIClient, catalogue: list[Item]) -> None:
    does(ann, catalogue[0], "click")
    scores_request()
    Job.objects.update(state=State.CANCELLED)
    Reader.objects.update(requested_at=timezone.now() - timedelta(seconds=61))
    assert len(scores_request()) == 1
    assert work().result == {"learners": 1}


def test_what_is_shown_often_and_not_taken_to_is_left_out(ann: APIClient, catalogue: list[Item]) -> None:
    tired = catalogue[1]
    for _ in range(5):
        does(ann, tired, "impression")
    does(ann, catalogue[0], "click")
    scores_request()
    work()
    shown = titles(page(ann, page_size=100))
    assert catalogue[2].title in shown
    assert tired.title not in shown


def test_the_next_topic_and_followed_authors_are_reasons(ann: APIClient, catalogue: list[Item]) -> None:
    first = topic_save(slug="loops", name="Loops", subject="programming")
    then = topic_save(slug="functions", name="Functions", subject="programming", prerequisites=[first])
    done, following = enriched("for", place=20), enriched("def", place=21)
    done.topics.set([first])
    following.topics.set([then])
    by_tess = enriched("By Tess", place=22, author="Tess")
    does(ann, done, "complete")
    assert ann.post("/api/v1/feed/follows", {"author": "Tess"}).status_code == 200
    scores_request()
    work()
    reasons = {e["item"]["title"]: e["reasons"] for e in page(ann, page_size=100)["results"]}
    assert {"code": "next_topic", "text": "Your next topic: Functions."} in reasons["def"]
    assert {"code": "followed", "text": "By Tess, whom you follow."} in reasons[by_tess.title]


def test_topics_are_as_estimated_where_an_author_names_none(ann: APIClient, catalogue: list[Item]) -> None:
    for slug in ("loops", "functions"):
        topic_save(slug=slug, name=slug, subject="programming")
    estimated, named = enriched("def", place=21), enriched("for", place=20)
    Enrichment.objects.update(topics=["functions", "gone since"])
    named.topics.set(Topic.objects.filter(slug="loops"))
    known = feed.catalogue_of(selectors.catalogue_rows())
    of = {known.ids[row]: known.topic_slugs[column] for row, column in zip(*known.topics.nonzero(), strict=True)}
    assert (of[str(estimated.id)], of[str(named.id)]) == ("functions", "loops")


def test_what_hardly_anybody_was_shown_is_tried(ann: APIClient, catalogue: list[Item]) -> None:
    for number in range(150):  # more than a ranking holds
        enriched(f"more {number}", place=30, subject="biology", level="beginner")
    does(ann, catalogue[0], "click")
    scores_request()
    work()
    entries = Ranking.objects.get(user__username="ann").entries
    tried = [entry for entry in entries if entry["propensity"] < 1]
    assert len(tried) == 8
    assert len({entry["propensity"] for entry in tried}) == 1
    assert 0 < tried[0]["propensity"] < 1
    assert tried[0]["reasons"] == [["explore", ""]]


def test_a_scored_feed_entertains_too_where_much_teaches_what_interests(ann: APIClient, catalogue: list[Item]) -> None:
    for number in range(150):  # more than any source proposes
        enriched(f"more {number}", place=30, subject="biology", level="beginner")
    does(ann, catalogue[30], "click")
    scores_request()
    work()
    assert sum(title.startswith("fun") for title in titles(page(ann))) == 4


def history(catalogue: list[Item], learners: int) -> None:
    """Each learner does the lessons of a subject one after the other, from some lesson on."""
    now = timezone.now()
    events = []
    for number in range(learners):
        user = User.objects.create_user(f"u{number}", f"u{number}@example.org")
        Reader.objects.create(user=user, events_at=now)
        own = catalogue[number % 5 * 10 :][:10]
        for step in range(6):
            item = own[(number // 5 + step) % 10]
            at = now - timedelta(days=10) + timedelta(days=step, seconds=number)
            events.append(Event(user=user, item=item, type="complete", at=at))
    Event.objects.bulk_create(events)


def test_a_ranker_is_learned_and_goes_live_and_foresees_what_comes_next(
    ann: APIClient,
    catalogue: list[Item],
) -> None:
    history(catalogue, learners=60)
    assert ranker_request(minimum=361) is None
    assert ranker_request(minimum=360) is not None
    assert ranker_request(minimum=360) is None  # one at a time
    job = work("fit_feed")
    ranker = Ranker.objects.get()
    assert (job.state, ranker.live, ranker.events) == (State.SUCCEEDED, True, 360)
    assert ranker.figures["new"]["ndcg"] > 0.9
    assert set(ranker.figures) == {"new", "added_up"}
    feed._state = None
    for item in catalogue[10:13]:
        does(ann, item, "complete")
    scores_request()
    work()
    assert titles(page(ann))[0] == catalogue[13].title
    assert Reader.objects.get(user__username="ann").ranker == ranker.digest


def test_too_little_to_judge_a_ranker_by_is_no_bug(ann: APIClient, catalogue: list[Item]) -> None:
    does(ann, catalogue[0], "complete")
    ranker_request(minimum=1)
    job = work("fit_feed")
    assert (job.state, job.error["code"]) == (State.FAILED, "too_little")
    assert not Ranker.objects.exists()


def learned() -> Ranker:
    assert ranker_request(minimum=1) is not None
    job = work("fit_feed")
    assert job.state == State.SUCCEEDED, job.error
    feed._state = None
    return Ranker.objects.get(digest=job.result["digest"])


def test_a_ranker_that_foresees_less_than_the_live_one_is_kept_back(
    ann: APIClient,
    catalogue: list[Item],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history(catalogue, learners=60)
    live = learned()
    lessons = model._lessons
    contrary = lambda *args: ((features, ~hit, sizes) for features, hit, sizes in lessons(*args))  # noqa: E731
    monkeypatch.setattr(model, "_lessons", contrary)
    Event.objects.create(user=User.objects.get(username="u0"), item=catalogue[0], type="click")
    worse = learned()
    live.refresh_from_db()
    assert (live.live, worse.live) == (True, False)
    assert worse.figures["live"]["ndcg"] > worse.figures["new"]["ndcg"] + feed.ALLOWANCE
    assert worse.verdict.startswith(f"NDCG@10 is {worse.figures['new']['ndcg']:.4f}, that of live")


def test_whom_a_learner_follows_counts_beside_a_ranker(ann: APIClient, catalogue: list[Item]) -> None:
    history(catalogue, learners=60)
    learned()
    by_tess = enriched("By Tess", place=22, author="Tess", subject="study")
    does(ann, catalogue[10], "complete")
    assert ann.post("/api/v1/feed/follows", {"author": "Tess"}).status_code == 200
    scores_request()
    work()
    parts = {part["name"]: part for part in ann.get(f"/api/v1/feed/{by_tess.id}/why").json()["parts"]}
    assert parts["followed"] == {"name": "followed", "value": 1.0, "weight": 0.4, "contribution": 0.4}
    assert parts["language"]["value"] == 1


def test_what_was_hidden_is_not_learned_from(ann: APIClient, catalogue: list[Item]) -> None:
    does(ann, catalogue[0], "click", "hide")
    does(ann, catalogue[1], "click")
    rows = feed.everything(feed.catalogue_of(selectors.catalogue_rows()))
    ids = [row.id for row in selectors.catalogue_rows()]
    assert [ids[item] for item in rows.items] == [str(catalogue[1].id)]


def test_learners_are_scored_all_the_same_where_the_ranker_cannot_be_read(
    ann: APIClient, catalogue: list[Item]
) -> None:
    history(catalogue, learners=60)
    ranker = learned()
    Path(ranker.file.path).unlink()
    Reader.objects.exclude(user__username="ann").delete()
    does(ann, catalogue[0], "click")
    scores_request()
    assert work().result == {"learners": 1}
    Reader.objects.update(requested_at=timezone.now() - timedelta(hours=1))
    assert scores_request() == []  # nothing better can be had by asking again


def test_before_there_are_items_nobody_is_scored(ann: APIClient) -> None:
    item = item_create(user=None, title="not read by models yet")
    does(ann, item, "click")
    scores_request()
    assert work().result == {"learners": 0}


def test_who_leaves_meanwhile_does_not_stop_the_others(
    ann: APIClient, catalogue: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = learner("bob")
    for client in (ann, bob):
        does(client, catalogue[0], "click")
    scores_request()
    ranked = feed.rankings

    def while_one_leaves(*args: Any) -> Any:
        user_erase(user=User.objects.get(username="ann"))
        return ranked(*args)

    monkeypatch.setattr(feed, "rankings", while_one_leaves)
    job = work()
    assert (job.state, job.result) == (State.SUCCEEDED, {"learners": 1})
    assert set(Ranking.objects.values_list("user__username", flat=True)) == {"bob"}


def test_who_did_something_comes_before_those_whom_only_a_new_ranker_concerns(
    ann: APIClient, catalogue: list[Item]
) -> None:
    now = timezone.now()
    ages = {"waits": 2, "waits longer": 5, "outdated": 60 * 24, "away": 60 * 24 * 31}
    for name, minutes in ages.items():
        user = User.objects.create_user(name, f"{minutes}@example.org")
        at = now - timedelta(minutes=minutes)
        until = at - timedelta(minutes=1) if "waits" in name else at
        Reader.objects.create(user=user, events_at=at, scored_until=until)
    due = selectors.reader_list_due(now=now, ranker="new", patience=timedelta(minutes=1))
    assert list(due.values_list("user__username", flat=True)) == ["waits longer", "waits", "outdated"]


def test_new_items_can_be_shown_before_a_ranker_knows_them(ann: APIClient, catalogue: list[Item]) -> None:
    history(catalogue, learners=60)
    ranker_request(minimum=1)
    work("fit_feed")
    feed._state = None
    enriched("brand new", place=1, subject="physics", level="beginner")
    does(ann, catalogue[10], "complete")
    scores_request()
    work()
    assert "brand new" in titles(page(ann, page_size=100))


def test_a_ranker_is_judged_by_some_learners_with_all_that_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "JUDGED_BY", 10)
    users = np.repeat(np.arange(40), 3)
    all_of_them = Interactions.of(users, np.tile([0, 1, 2], 40), np.zeros(120), np.ones(120), (40, 3))
    some = feed.some_of(all_of_them)
    assert np.unique(some.users, return_counts=True)[1].tolist() == [3] * 10
    assert feed.some_of(all_of_them).users.tolist() == some.users.tolist()
    assert feed.some_of(some) is some
