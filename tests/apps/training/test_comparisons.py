"""Comparisons with an outside model: what is asked of it, and what people say of the replies."""

import re
from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from apps.jobs.models import Job
from apps.training.models import Comparison, Vote
from apps.training.selectors.comparisons import comparison_results
from apps.training.services.comparisons import comparison_create, pairing_record
from apps.users.models import Role, User
from tests.apps.training.conftest import add

pytestmark = pytest.mark.django_db

COMPARISONS = "/api/v1/training/comparisons"
ASKED = {"task": "tutoring", "judge": "people"}
ADMIN = "/admin/training/comparison/"


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COMPARE_URL": "http://127.0.0.1:1/v1", "COMPARE_MODEL": "large"}.items():
        monkeypatch.setattr(f"lyo.env.{name}", value)


@pytest.fixture
def prompts(ann: User) -> None:
    consented = {"learner": ann, "consented_at": ann.training_consented_at}
    for number in range(3):
        add(f"What is {number} + 1?", **consented)
    add("From a file, so of nobody who consented")
    add("Not approved", state="pending", **consented)


def compared(user: User, count: int = 3) -> Comparison:
    """With replies to all prompts."""
    comparison, _ = comparison_create(user=user, task="tutoring", judge="people", count=count)
    for pairing in comparison.pairings.all():
        pairing_record(pairing_id=pairing.id, ours=f"ours {pairing.position}", theirs=f"theirs {pairing.position}")
    return comparison


def test_without_an_outside_model_it_is_said_which_settings_are_missing(desk: APIClient, prompts: None) -> None:
    refused = desk.post(COMPARISONS, {**ASKED, "judge": "model"})
    (error,) = refused.json()["errors"]
    assert (refused.status_code, error["code"]) == (409, "endpoint_missing")
    names = ["LYO_COMPARE_URL", "LYO_COMPARE_MODEL", "LYO_JUDGE_URL", "LYO_JUDGE_MODEL"]
    assert error["detail"] == f"No outside model is configured: set {' and '.join(names)}."
    assert not Comparison.objects.exists()


def test_the_admins_page_says_so_too(admin_client: Client, prompts: None) -> None:
    page = admin_client.get(ADMIN).content.decode()
    assert "LYO_COMPARE_URL" in page
    assert admin_client.get(f"{ADMIN}add/").status_code == 403


def test_prompts_are_masked_and_approved_ones_of_who_consented(desk: APIClient, outside: None, prompts: None) -> None:
    accepted = desk.post(COMPARISONS, {**ASKED, "count": 2})
    assert accepted.status_code == 202
    comparison = Comparison.objects.get()
    assert [pairing.messages for pairing in comparison.pairings.all()] == [
        [{"role": "user", "content": "What is 2 + 1?"}],
        [{"role": "user", "content": "What is 1 + 1?"}],
    ]
    job = Job.objects.get(id=accepted.json()["job"]["id"])
    assert (job.queue, job.request) == ("evaluate", {"comparison": str(comparison.id)})
    shown = accepted.json()["comparison"]
    assert (shown["opponent"], shown["pairings_count"], shown["answered_count"]) == ("large", 2, 0)


def test_without_a_prompt_there_is_nothing_to_compare(desk: APIClient, outside: None) -> None:
    refused = desk.post(COMPARISONS, ASKED)
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (400, "no_prompts")


def test_learners_compare_nothing(ann: User, outside: None, prompts: None) -> None:
    learner = APIClient()
    learner.force_authenticate(ann)
    assert [learner.get(COMPARISONS).status_code, learner.post(COMPARISONS, ASKED).status_code] == [403, 403]


def test_people_judge_without_being_told_whose_reply_is_which(staff: User, outside: None, prompts: None) -> None:
    """Whoever always prefers ours has said so, on whichever side it was shown."""
    comparison = compared(staff)
    sides = set()
    for number in range(8):
        judge = User.objects.create_superuser(f"j{number}", f"j{number}@example.org", "x")
        client = Client()
        client.force_login(judge)
        for _ in range(3):
            url = f"{ADMIN}{comparison.id}/judge/"
            page = client.get(url).content.decode()
            side = "left" if page.index("ours ") < page.index("theirs ") else "right"
            sides.add(side)
            pairing = re.search(r'name="pairing" value="(\d+)"', page)
            assert pairing is not None
            assert client.post(url, {"pairing": pairing[1], "better": side}).status_code == 302
        assert 'name="pairing"' not in client.get(url).content.decode()  # all are judged
    assert sides == {"left", "right"}
    assert set(Vote.objects.values_list("verdict", flat=True)) == {"ours"}
    assert Vote.objects.count() == 24


def test_a_verdict_that_is_none_is_refused_and_the_page_goes_on(
    admin_client: Client, staff: User, outside: None, prompts: None
) -> None:
    url = f"{ADMIN}{compared(staff).id}/judge/"
    for body in ({}, {"better": "left"}, {"better": "both", "pairing": "1"}, {"better": "left", "pairing": "0"}):
        assert admin_client.post(url, body).status_code == 302
        assert admin_client.get(url).status_code == 200
    assert not Vote.objects.exists()


def test_who_may_not_vote_does_not(staff: User, outside: None, prompts: None) -> None:
    client = Client()
    client.force_login(User.objects.create_user("sid", "sid@example.org", role=Role.STAFF, is_staff=True))
    assert client.get(f"{ADMIN}{compared(staff).id}/judge/").status_code == 403


def test_win_rates_count_a_tie_half_and_a_pairing_once(desk: APIClient, staff: User, outside: None, prompts: None):
    comparison = compared(staff)
    assert comparison_results(comparison) == {"model": None, "people": None}
    first, second, third = comparison.pairings.all()
    people = [User.objects.create_user(f"p{number}", f"p{number}@example.org") for number in range(2)]
    for pairing, verdicts in ((first, ("ours", "ours")), (second, ("ours", "theirs")), (third, ("ours", "tie"))):
        for person, verdict in zip(people, verdicts, strict=True):
            Vote.objects.create(pairing=pairing, user=person, verdict=verdict)
    results: Any = desk.get(f"{COMPARISONS}/{comparison.id}").json()["results"]
    assert {name: results["people"][name] for name in ("n", "wins", "ties", "losses", "win_rate")} == {
        "n": 3,
        "wins": 2,
        "ties": 1,
        "losses": 0,
        "win_rate": 0.75,
    }
    # Wilson's interval of 2.25 in 3
    assert (results["people"]["low"], results["people"]["high"]) == pytest.approx((0.2561, 0.9632), abs=1e-4)
