"""Looking changes nothing: a link of the admin may be prefetched, or sent to somebody who is logged in."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin import ModelAdmin
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from rest_framework.test import APIClient

from apps.content.models import Item
from apps.inference.models import Route
from apps.inference.services import adapter_add, route_promote
from apps.jobs.services import job_create
from apps.training.models import DataSetVersion, Run, RunState
from apps.users.models import User
from lyo import env
from tests.apps.feed.conftest import ann, catalogue, send  # noqa: F401 - fixtures
from tests.apps.training.conftest import add
from tests.apps.training.test_comparisons import compared, outside  # noqa: F401 - a fixture

pytestmark = pytest.mark.django_db

# Every action that is a link of its own. A new one is walked, too: write it down here.
LINKED = {"complete", "roll_back", "promote", "download", "pause_this", "resume_this", "cancel_this", "judge_replies"}


@pytest.fixture
def of_everything(admin_user: User, ann: APIClient, catalogue: list[Item], outside: None) -> None:  # noqa: F811
    """Something of what the admin's actions are for, in a state in which they would do something."""
    assert send(ann, {"item": str(catalogue[0].id), "type": "complete"}).status_code < 300
    learner = User.objects.get(username="ann")
    User.objects.filter(id=learner.id).update(birth_year=1990, training_consented_at=timezone.now())
    learner.refresh_from_db()
    talk = ann.post("/api/v1/tutor/conversations", {"subject": "math", "level": "beginner"}).json()["id"]
    assert ann.post(f"/api/v1/tutor/conversations/{talk}/messages", {"content": "Why?"}).status_code == 202
    live, canary = (
        adapter_add(suffix=name, digest=digit * 16, base_model=env.MODEL, base_digest="b" * 64)
        for name, digit in (("live", "a"), ("canary", "c"))
    )
    route_promote(task="tutoring", adapter=live)
    route_promote(task="tutoring", adapter=canary, canary_share=0.5)
    version = DataSetVersion.objects.create(
        method="sft", validation_share=0, statistics={"examples": {}}, digest="d" * 64
    )
    for state in (RunState.RUNNING, RunState.PAUSED):
        job = job_create(kind="train", user=admin_user, request={})
        Run.objects.create(user=admin_user, state=state, job=job, version=version, recipe={}, suffix="own", steps=10)
    for number in range(3):
        add(f"What is {number} + 1?", learner=learner, consented_at=learner.training_consented_at)
    compared(admin_user, 2)
    assert Route.objects.get().canary


def pages(model_admin: ModelAdmin) -> Iterator[tuple[str, str]]:  # type: ignore[type-arg]
    """The name and the path of every page of a model's admin, for up to two of its rows."""
    rows = list(model_admin.model._default_manager.all()[:2])
    for pattern in model_admin.get_urls():
        for args in ([], *([row.pk] for row in rows)):
            with suppress(NoReverseMatch):
                yield str(pattern.name), reverse(f"admin:{pattern.name}", args=args)


def contents() -> dict[str, str]:
    """A digest of every table's rows."""
    digests = {}
    with connection.cursor() as cursor:
        for model in apps.get_models():
            if model._meta.managed and model is not Session:
                table = connection.ops.quote_name(model._meta.db_table)
                cursor.execute(f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t")
                digests[model._meta.label] = cursor.fetchone()[0]
    return digests


@pytest.mark.usefixtures("of_everything")
def test_no_get_of_the_admin_changes_anything(admin_client: Client) -> None:
    before, walked = contents(), set()
    for model_admin in admin.site._registry.values():
        for name, path in pages(model_admin):
            assert admin_client.get(path).status_code in (200, 302, 403, 404, 405), path
            walked.add(name)
        changed = {label for label, digest in contents().items() if digest != before[label]}
        assert not changed, f"a GET of {model_admin} changes {changed}"
    assert {action for action in LINKED if any(name.endswith(f"_{action}") for name in walked)} == LINKED


def test_every_action_that_is_a_link_is_known_to_this_test() -> None:
    linked: set[Any] = set()
    for model_admin in admin.site._registry.values():
        for kind in ("actions_list", "actions_detail", "actions_row"):
            for entry in getattr(model_admin, kind, ()):
                linked |= set(entry["items"]) if isinstance(entry, dict) else {entry}
    assert linked == LINKED
