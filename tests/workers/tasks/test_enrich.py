"""The `enrich` task with the packaged embedder and the shipped heads: what waits is read, once, and in order."""

from typing import Any

import numpy as np
import pytest

from apps.content.models import Enrichment, Item
from apps.content.selectors import enrichment_progress, item_pending
from apps.content.services import enrichment_request, item_archive, item_create, item_update, topic_save
from apps.content.tasks import enrich as beat
from apps.jobs.models import Job, State
from workers.protocols import EngineCrashed
from workers.scoring.heads import Heads
from workers.tasks import enrich

pytestmark = pytest.mark.django_db(transaction=True)

LIGHT = {"title": "Plants and light", "body": "<p>Leaves turn light, water and carbon dioxide into sugar.</p>"}
CATS = {"title": "Ten cats that sing pop songs", "body": "<p>A funny video of cats singing chart hits.</p>"}


def work() -> Job:
    """Execute the job that is queued on this thread, as its worker would."""
    job = Job.objects.get(kind="enrich", state=State.QUEUED)
    enrich.enrich(str(job.id))
    job.refresh_from_db()
    return job


def test_what_is_new_is_judged_and_asked_for_once() -> None:
    topic_save(slug="biology-photosynthesis", name="Photosynthesis", subject="biology")
    topic_save(slug="biology-heart", name="The heart", subject="biology")
    light = item_create(user=None, subject="biology", **LIGHT)
    cats = item_create(user=None, subject="general", **CATS)
    assert enrichment_progress() == {"items": 2, "pending": 2}
    job = work()
    assert (job.state, job.result) == (State.SUCCEEDED, {"items": 2})
    assert enrichment_progress() == {"items": 2, "pending": 0}
    of_light, of_cats = (Enrichment.objects.get(item=item) for item in (light, cats))
    assert of_light.educational > 0.5 > of_cats.educational
    assert of_light.topics[0] == "biology-photosynthesis"
    assert np.linalg.norm(of_light.embedding) == pytest.approx(1, abs=1e-4)
    assert (of_light.source, len(of_light.models_digest)) == (light.source, 64)


def test_what_has_changed_is_read_again_and_what_has_not_is_not() -> None:
    item, other = item_create(user=None, **LIGHT), item_create(user=None, **CATS)
    work()
    first = Enrichment.objects.get(item=other).enriched_at
    item_update(item=item, level="advanced")  # nothing that models read
    assert not Job.objects.filter(kind="enrich", state=State.QUEUED).exists()
    item_update(item=item, body=CATS["body"], title=CATS["title"])
    assert work().result == {"items": 1}
    assert Enrichment.objects.get(item=item).educational < 0.5
    assert Enrichment.objects.get(item=other).enriched_at == first


def test_other_models_read_all_again_the_new_first(monkeypatch: pytest.MonkeyPatch) -> None:
    old = item_create(user=None, **LIGHT)
    work()
    new = item_create(user=None, **CATS)
    assert list(item_pending(models_digest="another")) == [new, old]
    shipped = Heads.load()
    monkeypatch.setattr(enrich.Heads, "load", lambda: Heads(shipped.weights, "another"))
    assert work().result == {"items": 2}


def test_a_lost_worker_s_round_goes_on_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item_create(user=None, title=f"{number} plants", body=LIGHT["body"]) for number in range(5)]
    monkeypatch.setattr(enrich, "BATCH", 2)
    kept = enrich.enrichment_record
    rounds: list[int] = []

    def dying(enrichments: Any) -> None:
        rounds.append(1)
        if len(rounds) == 2:
            raise EngineCrashed("lost")
        kept(enrichments)

    monkeypatch.setattr(enrich, "enrichment_record", dying)
    assert work().state == State.QUEUED
    assert item_pending().count() == len(items) - 2
    assert work().result == {"items": 3}


def test_beat_asks_for_what_came_while_a_round_was_ending() -> None:
    item_create(user=None, **LIGHT)
    work()
    beat()
    assert not Job.objects.filter(kind="enrich", state=State.QUEUED).exists()
    Item.objects.update(source="changed")
    beat()
    assert work().result == {"items": 1}


def test_one_round_at_a_time() -> None:
    assert enrichment_request() is not None
    assert enrichment_request() is None
    assert Job.objects.filter(kind="enrich").count() == 1


def test_archived_items_are_left_alone() -> None:
    item_create(user=None, **LIGHT)
    item_archive(items=Item.objects.all())
    assert work().result == {"items": 0}
    assert enrichment_progress() == {"items": 0, "pending": 0}
