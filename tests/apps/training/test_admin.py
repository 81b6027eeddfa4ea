import json
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.test import Client
from django.utils import timezone

from apps.training.models import DataSetVersion, Example, File, Review
from apps.training.services import data as services
from apps.users.models import Role, User
from tests.apps.training.conftest import add, chat, imported

pytestmark = pytest.mark.django_db

EXAMPLES = "/admin/training/example/"
QUEUE_QUERIES = 6  # session, user, counts by subject, reviews in common, count, rows


def listed(client: Client, **query: Any) -> set[str]:
    response = client.get(EXAMPLES, query)
    assert response.status_code == 200
    return {example.hash for example in response.context["cl"].result_list}


def said(response: Any) -> str | None:
    """The last message to the user."""
    assert response.status_code == 302
    messages = [str(message) for message in get_messages(response.wsgi_request)]
    return messages[-1] if messages else None


def act(client: Client, action: str, *examples: Example) -> str | None:
    chosen = {"action": action, "_selected_action": [str(example.id) for example in examples]}
    return said(client.post(EXAMPLES, chosen))


def save(client: Client, example: Example, content: Any, button: str = "_save") -> Any:
    inline = {"reviews-TOTAL_FORMS": "0", "reviews-INITIAL_FORMS": "0"}
    return client.post(f"{EXAMPLES}{example.id}/change/", {"content": json.dumps(content), button: "1", **inline})


def test_the_queue_costs_the_same_however_long(admin_client: Client, django_assert_num_queries: Any) -> None:
    for count in (1, 20):
        for number in range(count):
            add(f"{count} + {number}?", state="pending")
        with django_assert_num_queries(QUEUE_QUERIES):
            admin_client.get(EXAMPLES)


def test_the_queue_is_filtered(admin_client: Client, admin_user: User, staff: User) -> None:
    pending, mine = add("2 + 2?", state="pending", subject="math"), add("3 + 3?")
    masked = services.example_new(
        format_="chat", record=chat("I am at a@b.org", "Hi."), task="tutoring", source="tutor", state="rejected"
    )
    masked.save()
    services.example_review(example=mine, reviewer=admin_user, decision="approve")
    services.example_review(example=masked, reviewer=staff, decision="reject")
    assert listed(admin_client) == {pending.hash, mine.hash, masked.hash}
    assert listed(admin_client, state__exact="pending") == {pending.hash}
    assert listed(admin_client, subject__exact="math") == {pending.hash}
    assert listed(admin_client, reviews="mine") == {mine.hash}
    assert listed(admin_client, reviews="others") == {masked.hash}
    assert listed(admin_client, reviews="none") == {pending.hash}
    assert listed(admin_client, masked="yes") == {masked.hash}
    assert listed(admin_client, masked="no") == {pending.hash, mine.hash}
    assert listed(admin_client, q="3 + 3") == {mine.hash}


def test_an_example_shows_both_texts_with_the_placeholders_marked(admin_client: Client) -> None:
    example = services.example_new(
        format_="chat", record=chat("I am <b>at</b> a@b.org", "Hi."), task="tutoring", source="tutor"
    )
    example.save()
    page = admin_client.get(f"{EXAMPLES}{example.id}/change/").text
    assert "I am &lt;b&gt;at&lt;/b&gt; a@b.org" in page
    assert "I am &lt;b&gt;at&lt;/b&gt; <mark>&lt;EMAIL_ADDRESS&gt;</mark>" in page
    assert "<b>at</b>" not in page


@pytest.mark.parametrize(("button", "state"), [("approve_this", "approved"), ("reject_this", "rejected")])
def test_one_example_is_decided_on_by_a_button(admin_client: Client, admin_user: User, button: str, state: str) -> None:
    example = add("2 + 2?", state="pending")
    assert said(save(admin_client, example, example.content, f"training_example_{button}")) == f"1 of 1 {state}."
    assert Example.objects.get().state == state
    assert Review.objects.get().reviewer == admin_user


def test_a_changed_text_is_an_edit_and_a_broken_one_is_refused(admin_client: Client) -> None:
    example = add("2 + 2?", "5", state="pending")
    broken = save(admin_client, example, {"messages": [{"role": "user"}]})
    assert broken.status_code == 200
    assert "messages[0] has no" in broken.text
    assert Review.objects.count() == 0
    assert said(save(admin_client, example, chat("2 + 2?", "4"))) == "1 of 1 edited and approved."
    row = Example.objects.get()
    assert (row.content, row.original, row.state) == (chat("2 + 2?", "4"), chat("2 + 2?", "5"), "approved")
    add("3 + 3?", "6")
    refused = said(save(admin_client, example, chat("3 + 3?", "6")))
    assert refused == "0 of 1 edited and approved. Another example has this content."


def test_saving_without_a_change_decides_nothing(admin_client: Client) -> None:
    example = add("2 + 2?", state="pending")
    assert said(save(admin_client, example, example.content)) is None
    assert (Example.objects.get().state, Review.objects.count()) == ("pending", 0)


def test_many_are_decided_on_at_once_and_what_cannot_be_is_said(admin_client: Client) -> None:
    examples = [add(f"What is {n} + 5?", state="pending") for n in range(3)]
    assert act(admin_client, "reject", *examples) == "3 of 3 rejected."
    line = b'{"instruction": "What is 1 + 5?", "output": "6"}'
    services.evaluation_set_register(name="sums", task="tutoring", stream=BytesIO(line))
    assert act(admin_client, "approve", *examples) == "2 of 3 approved. Its problem is in evaluation set sums@1."
    assert set(Example.objects.filter(state="approved").values_list("hash", flat=True)) == {
        examples[0].hash,
        examples[2].hash,
    }


def test_who_may_only_look_cannot_decide(client: Client) -> None:
    viewer = User.objects.create_user("viewer", "viewer@example.com", role=Role.STAFF)
    viewer.user_permissions.add(Permission.objects.get(codename="view_example"))
    client.force_login(viewer)
    example = add("2 + 2?", state="pending")
    client.post(EXAMPLES, {"action": "approve", "_selected_action": [str(example.id)]})
    assert save(client, example, chat("2 + 2?", "4")).status_code == 403
    assert Example.objects.get().state == "pending"
    assert listed(client) == {example.hash}


def test_counts_and_agreement_stand_above_the_queue(admin_client: Client, admin_user: User, staff: User) -> None:
    example = add("1?", subject="math")
    for number in range(3):
        add(f"{number} + 2?", subject="math", state="pending")
    for reviewer in (admin_user, staff):
        services.example_review(example=example, reviewer=reviewer, decision="approve")
    response = admin_client.get(EXAMPLES)
    (bar,) = response.context["counts"]
    assert (bar["title"], bar["description"]) == ("Tutoring, Mathematics", "1 approved, 3 pending, 0 rejected")
    assert [part["value"] for part in bar["items"]] == [25.0, 75.0, 0.0]
    assert response.context["agreement"]["rows"] == [["admin and grace", 1, "100%", "-"]]
    for text in ("Tutoring, Mathematics", "width: 75.0%", "admin and grace"):
        assert text in response.text


def test_deleting_examples_and_files_marks_the_versions_that_had_them(admin_client: Client, staff: User) -> None:
    example = add("2 + 2?", subject="math")
    file = imported(staff, json.dumps(chat("3 + 3?", "6")).encode())
    one = services.version_build(user=staff, method="supervised", subject="math", validation_share=0)[0]
    other = services.version_build(user=staff, method="supervised", files=[file.id], validation_share=0)[0]
    assert admin_client.post(f"{EXAMPLES}{example.id}/delete/", {"post": "yes"}).status_code == 302
    erased = DataSetVersion.objects.filter(erased_at__isnull=False)
    assert set(erased) == {one}
    both = {"action": "delete_selected", "_selected_action": [str(file.id)], "post": "yes"}
    assert admin_client.post("/admin/training/file/", both).status_code == 302
    assert set(erased.all()) == {one, other}
    assert (Example.objects.count(), File.objects.count()) == (0, 0)


@pytest.mark.parametrize("model", ["file", "datasetversion", "evaluationset"])
def test_the_other_pages_show_and_change_nothing(admin_client: Client, staff: User, model: str) -> None:
    imported(staff, json.dumps(chat("2 + 2?", "4")).encode())
    services.version_build(user=staff, method="supervised", validation_share=0)
    line = b'{"instruction": "What is 17 + 25?", "output": "42"}'
    made = services.evaluation_set_register(name="sums", task="tutoring", stream=BytesIO(line))
    ids = {"file": File.objects.get().id, "datasetversion": DataSetVersion.objects.get().id, "evaluationset": made.id}
    url = f"/admin/training/{model}/"
    assert admin_client.get(url).status_code == 200
    assert admin_client.get(f"{url}{ids[model]}/change/").status_code == 200
    assert admin_client.post(f"{url}{ids[model]}/change/", {}).status_code == 403
    assert admin_client.get(f"{url}add/").status_code == 403


def test_staff_can_erase_a_learner_who_has_examples(admin_client: Client, ann: User) -> None:
    fields = {"task": "tutoring", "source": "tutor", "learner": ann, "consented_at": timezone.now() - timedelta(days=1)}
    services.example_new(format_="chat", record=chat("2?", "3"), **fields).save()
    assert admin_client.post(f"/admin/users/user/{ann.id}/delete/", {"post": "yes"}).status_code == 302
    assert (User.objects.filter(id=ann.id).count(), Example.objects.count()) == (0, 0)
