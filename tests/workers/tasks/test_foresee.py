"""The `foresee_feed` task: a tiny Gemma with an adapter says what learners will take to, and feeds follow it."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from apps.content.models import Item
from apps.feed import selectors
from apps.feed.models import Foresight, Weights
from apps.feed.services import foresights_request, scores_request
from apps.inference.models import Route
from apps.jobs.models import Job, State
from apps.training.formats import engagement_question
from lyo import env
from tests.apps.feed.conftest import learner, page, send
from tests.workers.tasks.conftest import promoted, serving, worker_has
from tests.workers.training.conftest import tiny_folder  # noqa: F401 - fixture
from workers.models.template import render
from workers.protocols import ScoreRequest
from workers.scoring.number import number_expected, number_tree
from workers.tasks import feed, foresee

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # noqa: F811
    with serving(tiny_folder, tmp_path_factory.mktemp("adapters"), "How likely?", "0.93", steps=3) as made:
        yield made


@pytest.fixture(autouse=True)
def _runtime(served: Any, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    worker_has(served, foresee, monkeypatch, settings)
    feed._state = None


@pytest.fixture
def live(served: Any) -> str:
    return promoted(served, task="engagement")


@pytest.fixture
def items(catalogue: list[Item]) -> list[Item]:
    """Each takes another time, so that each is another question."""
    for minutes, item in enumerate(catalogue, start=1):
        item.duration = 60 * minutes
    Item.objects.bulk_update(catalogue, ["duration"])
    return catalogue


def scored(client: APIClient, item: Item) -> None:
    """Have the learner do something, and their feed scored."""
    assert send(client, {"item": str(item.id), "type": "click"}).status_code == 201
    (job,) = scores_request()
    feed.score_feed(str(job.id))


def night() -> dict[str, Any]:
    """All that is asked for, executed on this thread as workers would; the results added up."""
    results = []
    for job in foresights_request():
        foresee.foresee_feed(str(job.id))
        job.refresh_from_db()
        assert job.state == State.SUCCEEDED, job.error
        results.append(job.result)
    return {name: sum(result[name] for result in results) for name in ("learners", "questions")}


def test_feeds_follow_what_the_adapter_foresees(served: Any, live: str, ann: APIClient, items: list[Item]) -> None:
    scored(ann, items[0])
    before = [entry["item"]["id"] for entry in page(ann, page_size=100, educational_share=1)["results"]]
    assert night() == {"learners": 1, "questions": 50}
    kept = Foresight.objects.get()
    assert (kept.adapter, len(kept.values)) == (live, 50)

    item = next(one for one in items if str(one.id) in kept.values)
    about = {"type": item.kind, "subject": item.subject, "duration": item.duration, "tags": item.tags}
    question = engagement_question(about, {"interests": ["biology"], "level": "beginner"})
    prompt = tuple(render(served.model.tokenizer, [{"role": "user", "content": question}]))
    request = ScoreRequest("own", prompt, *number_tree(served.model.tokenizer), adapter=live)
    alone = number_expected(served.engine.score(request).wait(60).logprobs)
    assert kept.values[str(item.id)] == pytest.approx(alone, abs=2e-4)

    Weights.objects.create(**{**dict.fromkeys(selectors.weights_get(), 0.0), "foresight": 100.0})
    selectors.caches["process"].clear()
    shown = page(ann, page_size=100, educational_share=1)["results"]
    after = [entry["item"]["id"] for entry in shown if "explore" not in {why["code"] for why in entry["reasons"]}]
    first = [kept.values[found] for found in after if found in kept.values]
    assert first == sorted(first, reverse=True)
    assert sorted(before) == sorted(entry["item"]["id"] for entry in shown)
    parts = ann.get(f"/api/v1/feed/{after[0]}/why").json()["parts"]
    assert {"name": "foresight", "value": first[0], "weight": 100.0, "contribution": round(100 * first[0], 4)} in parts


def test_it_is_done_once_until_the_learner_does_something(live: str, ann: APIClient, items: list[Item]) -> None:
    scored(ann, items[0])
    assert night()["learners"] == 1
    assert foresights_request() == []
    scored(ann, items[1])
    assert night()["learners"] == 1


def test_who_comes_later_that_night_waits_for_the_next(
    live: str, ann: APIClient, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(ann, items[0])
    (job,) = foresights_request()
    assert foresights_request() == []  # the last night's is not over
    Job.objects.update(request={**job.request, "until": (timezone.now() - timedelta(seconds=1)).isoformat()})
    foresee.foresee_feed(str(job.id))
    job.refresh_from_db()
    assert (job.state, job.result) == (State.SUCCEEDED, {"learners": 0, "questions": 0})
    monkeypatch.setattr(env, "FORESIGHT_S", 0)
    assert foresights_request() == []


def test_learners_alike_are_asked_about_once_and_a_resumed_job_goes_on(
    live: str, ann: APIClient, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = learner("bob", interests=["biology"])
    for client in (ann, bob):
        scored(client, items[0])
    monkeypatch.setattr("apps.feed.services.FORESEERS", 1)
    assert night() == {"learners": 2, "questions": 50}

    for client in (ann, bob):
        scored(client, items[1])
    (job,) = foresights_request()
    first, second = job.request["users"]
    Foresight.objects.filter(user=first).update(made_at=timezone.now(), values={})  # by a worker that died then
    foresee.foresee_feed(str(job.id))
    job.refresh_from_db()
    assert job.result["learners"] == 1
    assert [len(Foresight.objects.get(user=user).values) for user in (first, second)] == [0, 50]


def test_without_its_adapter_nothing_is_foreseen_and_what_was_counts_no_more(
    live: str, ann: APIClient, items: list[Item]
) -> None:
    scored(ann, items[0])
    night()
    shown = page(ann)["results"]
    item = next(e["item"]["id"] for e in shown if e["item"]["id"] in Foresight.objects.get().values)
    Route.objects.filter(task="engagement").update(live=None)
    assert foresights_request() == []
    scored(ann, items[1])
    parts = {part["name"]: part["value"] for part in ann.get(f"/api/v1/feed/{item}/why").json()["parts"]}
    assert parts["foresight"] == 0
