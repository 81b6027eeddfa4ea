from io import BytesIO
from typing import Any
from uuid import uuid4

import pytest
from rest_framework.test import APIClient

from apps.common.errors import Conflict
from apps.training.models import Example, Review
from apps.training.selectors.data import Agreement, example_counts, reviewer_agreement
from apps.training.services import data as services
from apps.users.models import Role, User
from tests.apps.training.conftest import add, chat

pytestmark = pytest.mark.django_db

EXAMPLES = "/api/v1/training/examples"


@pytest.fixture
def other(db: None) -> User:
    return User.objects.create_user("alan", "alan@example.org", role=Role.STAFF)


def review(desk: APIClient, example: Example, **decision: Any) -> Any:
    return desk.post(f"{EXAMPLES}/{example.id}/review", decision)


def test_examples_are_approved_and_rejected_and_the_last_word_counts(desk: APIClient, staff: User) -> None:
    example = add("2 + 2?", "4", state="pending")
    assert review(desk, example, decision="approve").json()["state"] == "approved"
    assert review(desk, example, decision="reject", note="wrong").json()["state"] == "rejected"
    (kept,) = Review.objects.all()
    assert (kept.reviewer, kept.decision, kept.note) == (staff, "reject", "wrong")


def test_an_edit_keeps_what_was_observed_and_approves(desk: APIClient) -> None:
    example = add("2 + 2?", "5", state="pending")
    edited = review(desk, example, decision="edit", content=chat("2 + 2?", "4")).json()
    assert (edited["state"], edited["content"]) == ("approved", chat("2 + 2?", "4"))
    row = Example.objects.get()
    assert row.original == chat("2 + 2?", "5")
    assert row.hash == services.example_hash("chat", chat("2 + 2?", "4")) != example.hash
    review(desk, example, decision="edit", content=chat("2 + 2?", "It is 4."))
    assert Example.objects.get().original == chat("2 + 2?", "5")


def test_the_corrected_answer_of_a_thumb_down_is_preferred_to_it(desk: APIClient) -> None:
    down = {**chat("2 + 2?", "5"), "liked": False}
    example = services.example_new(format_="thumb", record=down, task="tutoring", source="tutor")
    example.save()
    edited = review(desk, example, decision="edit", content={**chat("2 + 2?", "4"), "liked": False}).json()
    assert (edited["format"], edited["state"]) == ("preference", "approved")
    assert edited["content"] == {"messages": chat("2 + 2?", "5")["messages"][:1], "chosen": "4", "rejected": "5"}
    assert Example.objects.get().original == down


def test_a_thumb_of_another_kind_is_an_edit_like_any_other(desk: APIClient) -> None:
    example = add("2 + 2?", "4", state="pending")
    down = {**chat("2 + 2?", "5"), "liked": False}
    assert review(desk, example, decision="edit", content=down).json()["format"] == "thumb"
    up = {**chat("2 + 2?", "4"), "liked": True}
    assert review(desk, example, decision="edit", content=up).json()["content"] == up
    assert Example.objects.get().original == chat("2 + 2?", "4")


@pytest.mark.parametrize(
    ("body", "attr"),
    [
        ({}, "decision"),
        ({"decision": "maybe"}, "decision"),
        ({"decision": "edit"}, "content"),
        ({"decision": "approve", "content": {}}, "content"),
        ({"decision": "edit", "content": {"messages": []}}, "content"),
        ({"decision": "approve", "note": "x" * 1001}, "note"),
        ({"decision": "approve", "colour": "red"}, "colour"),
    ],
)
def test_a_bad_review_names_the_field_and_changes_nothing(desk: APIClient, body: dict[str, Any], attr: str) -> None:
    example = add("2 + 2?", "5", state="pending")
    refused = review(desk, example, **body)
    assert (refused.status_code, refused.json()["errors"][0]["attr"]) == (400, attr)
    assert (Example.objects.get().state, Review.objects.count()) == ("pending", 0)


def test_an_edit_that_makes_two_the_same_is_refused(desk: APIClient) -> None:
    add("2 + 2?", "4")
    example = add("2 + 2?", "5")
    refused = review(desk, example, decision="edit", content=chat("2 + 2?", "4"))
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (409, "duplicate_example")
    assert Review.objects.count() == 0


def test_what_a_version_has_can_be_rejected_but_not_edited(desk: APIClient, staff: User) -> None:
    example = add("2 + 2?", "5")
    services.version_build(user=staff, method="supervised", validation_share=0)
    refused = review(desk, example, decision="edit", content=chat("2 + 2?", "4"))
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (409, "example_in_use")
    assert review(desk, example, decision="reject").status_code == 200


def test_a_problem_of_an_evaluation_set_cannot_be_approved(staff: User) -> None:
    example = add("What is 17 + 25?", "42")
    line = b'{"instruction": "What is 17+25 ?", "output": "42"}'
    services.evaluation_set_register(name="sums", task="tutoring", stream=BytesIO(line))
    example.refresh_from_db()
    assert (example.state, example.note) == ("rejected", "Its problem is in evaluation set sums@1.")
    with pytest.raises(Conflict, match="sums@1"):
        services.example_review(example=example, reviewer=staff, decision="approve")


def test_examples_are_listed_and_filtered_at_a_fixed_cost(desk: APIClient, django_assert_num_queries: Any) -> None:
    first, second = add("2 + 2?", subject="math"), add("3 + 3?", subject="physics", state="pending")
    with django_assert_num_queries(1):
        found = desk.get(EXAMPLES).json()["results"]
    assert [row["id"] for row in found] == [str(second.id), str(first.id)]
    assert found[1] == {
        "id": str(first.id),
        "task": "tutoring",
        "subject": "math",
        "format": "chat",
        "state": "approved",
        "source": "file",
        "note": "",
        "hash": first.hash,
        "created_at": first.created_at.isoformat().replace("+00:00", "Z"),
    }
    filtered = desk.get(
        EXAMPLES, {"subject": "physics", "format": "chat", "state": "pending", "source": "file"}
    ).json()["results"]
    assert [row["id"] for row in filtered] == [str(second.id)]
    assert desk.get(EXAMPLES, {"subject": "alchemy"}).json()["errors"][0]["attr"] == "subject"
    content = chat("2 + 2?", "Because.")
    assert desk.get(f"{EXAMPLES}/{first.id}").json() == {**found[1], "content": content}
    assert desk.get(f"{EXAMPLES}/{uuid4()}").status_code == 404
    assert desk.post(f"{EXAMPLES}/{uuid4()}/review", {"decision": "approve"}).status_code == 404


def test_agreement_is_cohens_kappa_over_what_both_decided(staff: User, other: User) -> None:
    both = ["approve approve"] * 20 + ["approve reject"] * 5 + ["reject approve"] * 10 + ["reject reject"] * 15
    for number, decisions in enumerate(both):
        example = add(f"{number} + 1?")
        for reviewer, decision in zip((other, staff), decisions.split(), strict=True):
            services.example_review(example=example, reviewer=reviewer, decision=decision)
    services.example_review(example=add("alone?"), reviewer=staff, decision="approve")
    (agreement,) = reviewer_agreement()
    assert agreement == Agreement(("alan", "grace"), n=50, agreed=35, kappa=pytest.approx(0.4))


def test_agreement_that_chance_explains_has_no_kappa(staff: User, other: User) -> None:
    example = add("2 + 2?")
    for reviewer in (staff, other):
        services.example_review(example=example, reviewer=reviewer, decision="approve")
    assert reviewer_agreement() == [Agreement(("alan", "grace"), n=1, agreed=1, kappa=None)]


def test_examples_are_counted_by_task_and_subject() -> None:
    add("1?", subject="math")
    add("2?", subject="math", state="pending")
    add("3?", subject="math", state="pending")
    add("4?", subject="study", state="rejected")
    assert example_counts() == [
        {"task": "tutoring", "subject": "math", "pending": 2, "approved": 1, "rejected": 0},
        {"task": "tutoring", "subject": "study", "pending": 0, "approved": 0, "rejected": 1},
    ]
