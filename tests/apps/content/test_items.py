from typing import Any

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from apps.content.models import Enrichment, Item
from apps.content.services import item_create, item_update
from tests.apps.content.conftest import ITEMS, Make, client_of

pytestmark = pytest.mark.django_db


def enrich(item: dict[str, Any], **fields: Any) -> None:
    found = {"educational": 0.9, "quality": 0.7, "level": "advanced", "embedding": [0.0] * 384, **fields}
    Enrichment.objects.create(item_id=item["id"], source="s", models_digest="m", enriched_at=timezone.now(), **found)


def titles(client: APIClient, **query: Any) -> list[str]:
    return [item["title"] for item in client.get(ITEMS, query).json()["results"]]


def test_an_item_is_shown_as_it_was_made(topics: None, make: Make, learner: APIClient) -> None:
    fields = {
        "title": "Adding fractions",
        "body": "<p>1/2 + 1/3 = 5/6</p>",
        "kind": "lesson",
        "subject": "math",
        "topics": ["math-fractions"],
        "level": "beginner",
        "language": "en",
        "duration": 300,
        "tags": ["fractions"],
        "author": "Tess",
        "licence": "CC0-1.0",
        "source_url": "https://example.org/fractions",
        "status": "published",
    }
    made = make(**fields)
    shown = learner.get(f"{ITEMS}/{made['id']}").json()
    assert shown == made
    assert {name: shown[name] for name in fields} == fields
    assert (shown["educational"], shown["quality"], shown["enriched_at"]) == (None, None, None)


def test_scripts_and_handlers_are_taken_out_of_a_body(make: Make) -> None:
    body = '<p onclick="evil()">Hello<script>evil()</script> <a href="javascript:evil()">you</a></p>'
    assert make(body=body)["body"] == '<p>Hello <a rel="noopener noreferrer">you</a></p>'


def test_the_level_is_the_authors_or_else_the_estimate(make: Make, learner: APIClient) -> None:
    told, unknown = make(title="told", level="beginner"), make(title="not told")
    assert learner.get(f"{ITEMS}/{unknown['id']}").json()["level"] is None
    for item in (told, unknown):
        enrich(item)
    assert [learner.get(f"{ITEMS}/{item['id']}").json()["level"] for item in (told, unknown)] == [
        "beginner",
        "advanced",
    ]
    assert titles(learner, level="advanced") == ["not told"]
    assert titles(learner, level="beginner") == ["told"]


def test_filters(topics: None, make: Make, learner: APIClient) -> None:
    make(title="a", subject="math", kind="video", topics=["math-division"], tags=["slow", "sums"], language="de")
    make(title="b", subject="physics", kind="lesson")
    for query in (
        {"subject": "math"},
        {"kind": "video"},
        {"topic": "math-division"},
        {"tag": "sums"},
        {"language": "de"},
    ):
        assert titles(learner, **query) == ["a"]
    assert titles(learner) == ["b", "a"]
    refused = learner.get(ITEMS, {"subject": "magic"})
    assert (refused.status_code, refused.json()["errors"][0]["attr"]) == (400, "subject")


@pytest.mark.parametrize(
    ("fields", "attr"),
    [
        ({"title": ""}, "title"),
        ({"kind": "song"}, "kind"),
        ({"topics": ["math-magic"]}, "topics"),
        ({"duration": 0}, "duration"),
        ({"language": "english!"}, "language"),
        ({"source_url": "javascript:alert(1)"}, "source_url"),
        ({"tags": ["x" * 51]}, "tags.0"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_kept(teacher: APIClient, fields: dict[str, Any], attr: str) -> None:
    refused = teacher.post(ITEMS, {"title": "Halves", **fields})
    assert (refused.status_code, [error["attr"] for error in refused.json()["errors"]]) == (400, [attr])
    assert not Item.objects.exists()


def test_learners_read_and_teachers_change_what_is_theirs(make: Make, learner: APIClient, staff: APIClient) -> None:
    url = f"{ITEMS}/{make()['id']}"
    assert learner.post(ITEMS, {"title": "x"}).status_code == 403
    assert learner.patch(url, {"title": "x"}).status_code == 403
    colleague = client_of("tom", role="teacher")  # type: ignore[arg-type]
    assert colleague.patch(url, {"title": "x"}).status_code == 403
    assert colleague.delete(url).status_code == 403
    assert client_of("sue", role="staff").patch(url, {"title": "x"}).status_code == 403  # type: ignore[arg-type]
    assert staff.patch(url, {"title": "Thirds"}).json()["title"] == "Thirds"


def test_a_change_leaves_the_rest(topics: None, make: Make, teacher: APIClient) -> None:
    made = make(title="Halves", level="beginner", topics=["math-fractions"], body="<p>old</p>")
    changed = teacher.patch(f"{ITEMS}/{made['id']}", {"body": "<p>new</p>"}).json()
    assert {**changed, "updated_at": None} == {**made, "body": "<p>new</p>", "updated_at": None}
    assert Item.objects.get().text == "new"


def test_drafts_are_their_authors_and_archived_items_nobodys(
    make: Make, teacher: APIClient, learner: APIClient
) -> None:
    made = make(title="early", status="draft")
    url = f"{ITEMS}/{made['id']}"
    assert [client.get(url).status_code for client in (teacher, learner)] == [200, 404]
    assert (titles(teacher), titles(teacher, status="draft"), titles(learner, status="draft")) == ([], ["early"], [])
    teacher.patch(url, {"status": "published"})
    assert titles(learner) == ["early"]
    assert teacher.delete(url).status_code == 204
    assert (titles(learner), learner.get(url).status_code, Item.objects.count()) == ([], 404, 1)


def test_a_list_costs_the_same_whatever_its_length(
    topics: None, make: Make, learner: APIClient, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(5):
        enrich(make(title=str(number), topics=["math-division", "math-fractions"]))
    with django_assert_num_queries(2):
        assert len(titles(learner)) == 5


def test_topics_come_in_the_order_of_teaching(topics: None, learner: APIClient) -> None:
    listed = learner.get("/api/v1/content/topics", {"subject": "math"}).json()["results"]
    assert [(topic["slug"], topic["prerequisites"]) for topic in listed] == [
        ("math-division", []),
        ("math-fractions", ["math-division"]),
    ]
    assert learner.get("/api/v1/content/topics/math-fractions").json() == listed[1]
    assert learner.get("/api/v1/content/topics/math-magic").status_code == 404


def test_two_who_change_an_item_at_once_undo_nothing_of_each_other(make: Make, db: None) -> None:
    made = make(title="Halves", body="<p>old</p>")
    one, other = (Item.objects.get(id=made["id"]) for _ in range(2))  # both read it before either changes it
    item_update(item=one, body="<p>new</p>")
    item_update(item=other, title="Thirds")
    kept = Item.objects.get()
    assert (kept.title, kept.body, kept.text) == ("Thirds", "<p>new</p>", "new")
    assert kept.source == item_create(user=None, title="Thirds", body="<p>new</p>").source
