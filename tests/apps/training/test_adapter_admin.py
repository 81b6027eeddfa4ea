"""The pages of adapters and routes."""

import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.test import Client
from django.utils import timezone

from apps.inference.models import Adapter, Outcome, Route, RouteChange
from apps.inference.services import adapter_add, route_promote
from apps.training.models import Evaluation
from apps.users.models import Role, User
from lyo import env

pytestmark = pytest.mark.django_db

ADAPTERS, ROUTES = "/admin/inference/adapter/", "/admin/inference/route/"
LIST_QUERIES = 5  # session, user, count, rows, evaluations


def adapter(suffix: str, **fields: Any) -> Adapter:
    return adapter_add(
        suffix=suffix, digest=uuid4().hex[:16], base_model=env.MODEL, base_digest="b" * 64, size=2**21, **fields
    )


def dialog(client: Client, url: str, **fields: Any) -> str | None:
    """Submit the form of a dialog; returns what was said."""
    response = client.post(url, {"_form_submitted": "true", **fields})
    assert (response.status_code, "HX-Redirect" in response.headers) == (200, True), response.text
    messages = [str(message) for message in get_messages(response.wsgi_request)]
    return messages[-1] if messages else None


@pytest.fixture
def viewer(db: None) -> Client:
    """Staff who may look and do no more."""
    user = User.objects.create_user("viewer", "viewer@example.com", "a long passphrase", role=Role.STAFF)
    names = ("view_adapter", "view_route", "view_routechange", "view_evaluation")
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client = Client()
    client.force_login(user)
    return client


def test_adapters_are_listed_at_the_same_cost_and_filtered_by_state(
    admin_client: Client, django_assert_num_queries: Any
) -> None:
    live = adapter("live")
    route_promote(task="tutoring", adapter=live)
    for _ in range(2):
        adapter("idle")
        with django_assert_num_queries(LIST_QUERIES):
            admin_client.get(ADAPTERS)
    assert len(admin_client.get(ADAPTERS).context["cl"].result_list) == 3
    assert list(admin_client.get(ADAPTERS, {"state": "live"}).context["cl"].result_list) == [live]


def test_an_adapter_shows_its_card_and_its_evaluations(viewer: Client, kept: Path) -> None:
    made = adapter("maths", recipe={"r": 16, "seed": 7}, licence="<b>Gemma</b>")
    Evaluation.objects.create(adapter=made, task="tutoring", passed=False, failures=["nll is too high."], report={})
    page = viewer.get(f"{ADAPTERS}{made.id}/change/").text
    for text in (made.name, "| Seed | 7 |", "&lt;b&gt;Gemma&lt;/b&gt;", "nll is too high."):
        assert text in page
    response = viewer.get(f"{ADAPTERS}{made.id}/download/")
    assert [str(said) for said in get_messages(response.wsgi_request)] == [f"The store has no folder {made.digest}."]
    (kept / made.digest).mkdir(parents=True)
    (kept / made.digest / "meta.json").write_text("{}")
    with zipfile.ZipFile(BytesIO(viewer.get(f"{ADAPTERS}{made.id}/download/").content)) as archive:
        assert archive.namelist() == ["README.md", "meta.json"]


def test_help_texts_are_text(admin_client: Client) -> None:
    page = admin_client.get(f"{ADAPTERS}{adapter('maths').id}/change/").text
    assert "ft:&lt;base model&gt;:&lt;suffix&gt;@&lt;digest&gt;, as clients name it." in page
    assert "<base model>" not in page
    assert "<li>" in admin_client.get("/admin/users/user/add/").text  # what is marked as HTML still is


def test_promotion_asks_and_says_what_held_it_back(admin_client: Client, admin_user: User) -> None:
    made = adapter("maths")
    url = f"{ADAPTERS}{made.id}/promote/"
    assert "Canary share" in admin_client.get(url).text
    assert dialog(admin_client, url, task="tutoring") == "It was not evaluated for this: ask for an evaluation first."
    assert not Route.objects.exists()
    said = dialog(admin_client, url, task="tutoring", subject="math", canary_share="0.25", override_reason="a demo")
    assert said == f"{made} is on the route tutoring, math."
    route = Route.objects.get()
    assert (route.canary, route.canary_share) == (made, 0.25)
    assert (RouteChange.objects.get().user, RouteChange.objects.get().reason) == (admin_user, "a demo")
    refused = admin_client.post(url, {"_form_submitted": "true", "task": "tutoring", "canary_share": "2"})
    assert "less than or equal to 1" in refused.text


def test_a_route_shows_how_its_canary_does_and_what_was_done(
    viewer: Client, admin_user: User, django_assert_num_queries: Any
) -> None:
    a, b = adapter("a"), adapter("b")
    route_promote(task="tutoring", adapter=a, user=admin_user, reason="first", overridden=["never evaluated"])
    route = route_promote(task="tutoring", adapter=b, canary_share=0.5)
    Outcome.objects.bulk_create(
        Outcome(
            job_id=uuid4(),
            voter=str(number),
            task="tutoring",
            adapter=made.digest,
            failed=number < failed,
            asked_at=timezone.now(),
        )
        for made, failed in ((a, 0), (b, 4))
        for number in range(20)
    )
    response = viewer.get(f"{ROUTES}{route.id}/change/")
    failed, thumbs = response.context["table"]["rows"]
    assert failed[:3] == ["failed", "0.0%: 0 of 20", "20.0%: 4 of 20"]
    assert failed[4] == "+5.0%"
    assert failed[5].endswith(" of 40")
    assert thumbs[:3] == ["thumbs down", "nothing yet", "nothing yet"]
    evidence = [bar["value"] for bar in response.context["bars"]]
    assert 0 <= evidence[1] <= evidence[0] < 100
    for text in ("The canary beside live", b.name, "50%", "first", "never evaluated"):
        assert text in response.text
    assert viewer.get(f"{ROUTES}{uuid4()}/change/").status_code == viewer.get(f"{ROUTES}x/change/").status_code == 302
    page = viewer.get(ROUTES).text
    assert a.name in page and "50%" in page


def test_a_canary_is_completed_and_rolled_back_with_a_reason(admin_client: Client, admin_user: User) -> None:
    a, b = adapter("a"), adapter("b")
    route_promote(task="tutoring", adapter=a)
    route = route_promote(task="tutoring", adapter=b, canary_share=0.5)
    url = f"{ROUTES}{route.id}/"
    assert dialog(admin_client, f"{url}complete/") == "tutoring was completed."
    assert dialog(admin_client, f"{url}complete/") == "There is no canary."
    assert dialog(admin_client, f"{url}roll_back/", reason="worse in class") == "tutoring was rolled back."
    assert Route.objects.get().live == a
    change = RouteChange.objects.first()
    assert (change.action, change.user, change.reason) == ("rollback", admin_user, "worse in class")
    assert "The canary beside live" not in admin_client.get(f"{url}change/").text


def seen(client: Client, url: str) -> str:
    """What a dialog that is opened now will send along."""
    return str(client.get(url).context["form"]["seen"].value())


def test_of_two_who_decide_at_once_in_the_admin_the_second_is_told(admin_client: Client) -> None:
    a, b, c = adapter("a"), adapter("b"), adapter("c")
    route_promote(task="tutoring", adapter=a)
    route_promote(task="tutoring", adapter=b)
    route = route_promote(task="tutoring", adapter=c, canary_share=0.5)
    url = f"{ROUTES}{route.id}/roll_back/"
    first, second = seen(admin_client, url), seen(admin_client, f"{ADAPTERS}{a.id}/promote/")
    assert dialog(admin_client, url, seen=first) == "tutoring was rolled back."
    changed = f"Nothing is canary, not {c.name}: it was changed meanwhile."
    assert dialog(admin_client, url, seen=first) == changed
    assert (
        dialog(admin_client, f"{ADAPTERS}{a.id}/promote/", task="tutoring", override_reason="x", seen=second) == changed
    )
    assert (Route.objects.get().live, RouteChange.objects.count()) == (b, 4)
    for forged in ('{"tutoring/": 3}', '{"tutoring/": {"live": [1]}}'):
        assert "changed meanwhile" in str(dialog(admin_client, url, seen=forged))


def test_who_may_only_look_cannot_act(viewer: Client) -> None:
    made = adapter("a")
    route = route_promote(task="tutoring", adapter=made)
    for url in (f"{ADAPTERS}{made.id}/promote/", f"{ROUTES}{route.id}/roll_back/", f"{ROUTES}{route.id}/complete/"):
        assert viewer.post(url, {"_form_submitted": "true", "task": "tutoring"}).status_code == 403
    assert viewer.get(f"{ROUTES}add/").status_code == viewer.get(f"{ADAPTERS}add/").status_code == 403
    assert RouteChange.objects.count() == 1
