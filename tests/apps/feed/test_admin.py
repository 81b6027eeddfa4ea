import json

import pytest
from django.contrib.auth.models import Permission
from django.core.cache import caches
from django.test import Client
from rest_framework.test import APIClient

from apps.content.models import Item
from apps.feed.models import Ranker, Weights
from apps.users.models import Role, User
from tests.apps.feed.conftest import page, send, titles

pytestmark = pytest.mark.django_db

ADD = "/admin/feed/weights/add/"
NAMES = (
    "engagement",
    "interest",
    "level",
    "language",
    "followed",
    "next_topic",
    "educational",
    "quality",
    "freshness",
    "trend",
    "foresight",
    "same_subject",
    "same_author",
)


def test_a_learner_s_feed_is_shown_with_reasons(ann: APIClient, catalogue: list[Item], admin_client: Client) -> None:
    shown = titles(page(ann))
    user = User.objects.get(username="ann")
    table = admin_client.get(f"/admin/feed/reader/{user.pk}/change/").context["table"]
    assert [row[1] for row in table["rows"]] == shown
    assert table["rows"][0][4].startswith("interest +0.60, level +0.40")
    assert table["rows"][0][5].startswith("You are interested in biology.")


def test_weights_are_previewed_before_they_are_saved(
    ann: APIClient, catalogue: list[Item], admin_client: Client
) -> None:
    before = titles(page(ann))
    form = dict.fromkeys(NAMES, "0") | {"educational": "1"}
    preview = admin_client.post(ADD, form | {"preview_for": "ann"})
    assert b"nothing is saved" in preview.content
    rows = preview.context["adminform"].form.preview["rows"]
    assert [row[1] for row in rows] == before
    assert [row[2] for row in rows] != before
    assert not Weights.objects.exists()
    assert b"There is no user" in admin_client.post(ADD, form | {"preview_for": "nobody"}).content
    assert admin_client.post(ADD, form).status_code == 302
    caches["process"].clear()
    assert titles(page(ann)) == [row[2] for row in rows]


def test_a_learner_s_feed_is_previewed_only_by_those_who_may_see_it(ann: APIClient, catalogue: list[Item]) -> None:
    owner = User.objects.create_user("moe", "moe@example.org", role=Role.STAFF)
    owner.user_permissions.set(Permission.objects.filter(codename__in=("add_weights", "view_weights")))
    client = Client()
    client.force_login(owner)
    assert b"preview_for" not in client.get(ADD).content
    form = dict.fromkeys(NAMES, "0") | {"preview_for": "ann"}
    assert client.post(ADD, form).status_code == 302  # nothing is previewed
    owner.user_permissions.add(Permission.objects.get(codename="view_reader"))
    assert b"nothing is saved" in client.post(ADD, form).content


def test_events_by_hour_are_a_chart(ann: APIClient, catalogue: list[Item], admin_client: Client) -> None:
    send(ann, *[{"item": str(catalogue[0].id), "type": kind} for kind in ("click", "like", "click")])
    chart = json.loads(admin_client.get("/admin/feed/reader/").context["events_chart"])
    assert len(chart["labels"]) == 1
    assert {bars["label"]: bars["data"] for bars in chart["datasets"]}["Opened"] == [2]


def test_staff_choose_another_ranker(admin_client: Client) -> None:
    old, new = Ranker.objects.create(digest="a" * 64, live=True), Ranker.objects.create(digest="b" * 64)
    both = {"action": "make_live", "_selected_action": [old.pk, new.pk]}
    assert b"Choose one." in admin_client.post("/admin/feed/ranker/", both, follow=True).content
    admin_client.post("/admin/feed/ranker/", {"action": "make_live", "_selected_action": [new.pk]})
    assert list(Ranker.objects.filter(live=True)) == [new]
