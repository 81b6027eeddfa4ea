"""What staff ask of workers waits in queues, too, of which nobody has all."""

from collections.abc import Callable
from io import BytesIO
from typing import Any
from uuid import uuid4

import pytest

from apps.common.errors import TooManyRequests
from apps.inference.models import Adapter
from apps.inference.services import adapter_add
from apps.jobs.models import Job
from apps.training.models import Run
from apps.training.services.adapters import adapter_upload
from apps.training.services.comparisons import comparison_create
from apps.training.services.evaluations import evaluation_create
from apps.training.services.runs import run_start
from apps.users.models import User
from lyo import env

pytestmark = pytest.mark.django_db


def run(user: User) -> Any:
    return run_start(user=user, files={uuid4(): 1.0}, validation_files=[], recipe={}, suffix="a")


def evaluation(user: User) -> Any:
    return evaluation_create(user=user, adapter=Adapter(name="a"), task="tutoring")


def comparison(user: User) -> Any:
    return comparison_create(user=user, task="tutoring", judge="people", count=1)


def upload(user: User) -> Any:
    about = {"suffix": "a", "task": "tutoring", "subject": "", "licence": ""}
    return adapter_upload(user=user, archive=BytesIO(b"no archive"), **about)


@pytest.mark.parametrize("ask", [run, evaluation, comparison, upload])
def test_a_full_queue_refuses_what_staff_ask(
    staff: User, monkeypatch: pytest.MonkeyPatch, ask: Callable[[User], Any]
) -> None:
    monkeypatch.setattr(env, "QUEUE_LIMIT", 0)
    monkeypatch.setattr(env, "COMPARE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setattr(env, "COMPARE_MODEL", "other")
    with pytest.raises(TooManyRequests) as refusal:
        ask(staff)
    assert refusal.value.extra == {"queue_position": 1}
    assert not Job.objects.exists() and not Run.objects.exists()


def test_staff_may_have_more_under_way_than_learners(staff: User) -> None:
    adapter = adapter_add(suffix="a", base_model=env.MODEL, base_digest="0" * 16, digest="1" * 16)
    for _ in range(2 * env.GENERATIONS_AT_ONCE):
        evaluation_create(user=staff, adapter=adapter, task="tutoring")
    assert Job.objects.count() == 2 * env.GENERATIONS_AT_ONCE
