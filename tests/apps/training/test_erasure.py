"""Whoever leaves takes what models learnt from: examples go, versions and adapters say so, runs are repeated."""

import pytest
from rest_framework.test import APIClient

from apps.inference.models import Adapter
from apps.inference.services import adapter_add
from apps.training.models import DataSetVersion, Example, Run, RunEvent
from apps.training.services import data, runs
from apps.training.tasks import collect, renew
from apps.users.models import User
from tests.apps.training.conftest import Talk, add

PASSWORD = "correct-horse-9-battery"


@pytest.fixture
def learnt(ann: User, talk: Talk) -> Run:
    """A run that has succeeded on ann's answer and on those of a file."""
    talk(ann, ("Why is the sky blue?", "Because air scatters blue light more than red light."))
    collect()
    example = Example.objects.get(learner=ann)
    data.example_review(example=example, reviewer=ann, decision="approve")
    for number in range(12):
        add(f"What is {number} + 1?", str(number + 1))
    version, _ = data.version_build(user=None, method="supervised", validation_share=0)
    assert version.members.filter(hash=example.hash).exists()
    run = runs.run_create(version=version, recipe={"seed": 3, "max_steps": 5}, suffix="tutor", task="tutoring")
    adapter = adapter_add(
        suffix="tutor", digest="0" * 16, base_model="gemma", base_digest="b", dataset_version=version.digest
    )
    Run.objects.filter(id=run.id).update(state="succeeded", adapter=adapter)
    run.refresh_from_db()
    return run


def leave(user: User) -> None:
    user.set_password(PASSWORD)
    user.save()
    client = APIClient()
    client.force_authenticate(user)
    assert client.delete("/api/v1/me", {"password": PASSWORD}).status_code == 204


def test_erasure_reaches_examples_versions_adapters_and_queues_retraining(ann: User, learnt: Run) -> None:
    hashes = set(learnt.version.members.values_list("hash", flat=True))
    leave(ann)
    renew()
    assert not Example.objects.filter(learner__isnull=False).exists()
    assert DataSetVersion.objects.get(id=learnt.version_id).erased_at is not None
    assert Adapter.objects.get(id=learnt.adapter_id).erased_at is not None
    (successor,) = Run.objects.filter(replaces=learnt)
    assert (successor.state, successor.recipe, successor.suffix) == ("queued", learnt.recipe, "tutor")
    left = set(successor.version.members.values_list("hash", flat=True))
    assert left < hashes
    assert len(hashes - left) == 1
    renew()
    assert Run.objects.count() == 2  # once


def test_a_run_under_way_is_ended_and_begun_anew(ann: User, learnt: Run) -> None:
    Run.objects.filter(id=learnt.id).update(state="running")
    leave(ann)
    renew()
    assert sorted(Run.objects.values_list("state", flat=True)) == ["cancelled", "queued"]


def test_where_nothing_is_left_there_is_no_successor_and_it_says_so_once(ann: User, learnt: Run) -> None:
    Example.objects.filter(learner=None).delete()
    leave(ann)
    renew()
    renew()
    assert Run.objects.count() == 1
    assert RunEvent.objects.filter(run=learnt, message__startswith="Not repeated: No approved").count() == 1


def test_what_nobody_erased_stays(learnt: Run) -> None:
    renew()
    assert Run.objects.count() == 1
    assert Adapter.objects.get(id=learnt.adapter_id).erased_at is None


def test_weights_that_were_learnt_again_without_what_was_erased_lose_the_mark(ann: User, learnt: Run) -> None:
    """Her example may have been too long to be learnt from; then both runs make the same adapter."""
    leave(ann)
    renew()
    assert Adapter.objects.get(id=learnt.adapter_id).erased_at is not None
    same = {"suffix": "tutor", "digest": "0" * 16, "base_model": "gemma", "base_digest": "b"}
    assert adapter_add(**same, dataset_version=learnt.version.digest).erased_at is not None
    (successor,) = Run.objects.filter(replaces=learnt)
    assert adapter_add(**same, dataset_version=successor.version.digest).erased_at is None
    renew()
    assert Adapter.objects.get(id=learnt.adapter_id).erased_at is None
