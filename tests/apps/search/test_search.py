"""Search against real Postgres; a worker's understanding of a query comes from a thread that does its task."""

import re
from collections.abc import Iterator
from datetime import timedelta
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from django.core.cache import caches
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from apps.common import redis
from apps.content.models import Course, Enrichment, Item, Topic
from apps.content.services import item_archive, item_create, topic_save
from apps.jobs.models import Job, State
from apps.search import retrieval, services, words
from apps.search.models import Query, Word
from apps.search.selectors import suggestions
from apps.search.services import Asked, queries_forget, words_count, words_refresh
from apps.training.models import Example
from apps.training.services.data import examples_collect
from apps.users.models import User
from apps.users.services import user_erase
from tests.apps.conftest import establish, exported
from tests.apps.content.conftest import client_of
from workers.models.embedder import Embedder
from workers.tasks import understand

SEARCH, SUGGEST = "/api/v1/search", "/api/v1/search/suggest"
TEXTS = (
    (
        "Photosynthesis: how plants turn light into food",
        "biology",
        "Leaves take up carbon dioxide and make sugar of it.",
    ),
    ("Cell division", "biology", "A cell copies its chromosomes, and then it divides."),
    ("Loops in Python", "programming", "A for loop repeats its body once for each element of a list."),
    ("Fractions", "math", "Two fractions are added by way of a common denominator."),
    ("A cat that sings", "general", "A funny video <b>of</b> cats & chart hits."),
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def ann(db: None) -> APIClient:
    caches["process"].clear()
    redis.cache().flushdb()
    return client_of("ann")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no worker, nobody waits for one."""
    monkeypatch.setattr("apps.search.services.PATIENCE_S", 0.0)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def items(ann: APIClient, embedder: Embedder) -> dict[str, Item]:
    made = {}
    for title, subject, body in TEXTS:
        item = made[title] = item_create(user=None, title=title, subject=subject, body=f"<p>{body}</p>")
        Enrichment.objects.create(
            item=item,
            source=item.source,
            models_digest="m",
            enriched_at=timezone.now(),
            embedding=embedder.embed([f"{title}\n\n{body}"]).vectors[0],
            educational=0.1 if "cat" in title else 0.9,
            quality=0.8,
            level="beginner",
        )
    words_count()
    words.forget()
    return made


def search(client: APIClient, q: str, **query: Any) -> dict[str, Any]:
    response = client.get(SEARCH, {"q": q, **query})
    assert response.status_code == 200, response.json()
    return response.json()


def titles(found: dict[str, Any]) -> list[str]:
    return [hit["title"] for hit in found["results"]]


# --- by words alone: no worker is there ---


def test_any_word_finds_and_the_rarest_counts_most(ann: APIClient, items: dict[str, Item]) -> None:
    found = search(ann, "how do plants add fractions by a denominator")
    assert titles(found)[0] == "Fractions"
    assert "Photosynthesis: how plants turn light into food" in titles(found)
    assert found["query"]["degraded"] is True
    assert (found["query"]["intent"], found["query"]["subject"]) == (None, None)


def test_a_new_item_is_found_before_models_have_read_it(ann: APIClient, items: dict[str, Item]) -> None:
    item_create(user=None, title="Mitosis", subject="biology", body="<p>The chromosomes line up.</p>", level="advanced")
    assert set(titles(search(ann, "chromosomes"))) == {"Mitosis", "Cell division"}
    assert titles(search(ann, "chromosomes", level="advanced")) == ["Mitosis"]


def test_snippets_mark_what_was_found_and_nothing_else_is_markup(ann: APIClient, items: dict[str, Item]) -> None:
    (hit,) = search(ann, "chart hits")["results"]
    assert hit["snippet"] == "A funny video of cats &amp; <mark>chart</mark> <mark>hits</mark>."


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("fotosynthesis", "photosynthesis"),
        ("fractoins", "fractions"),
        ("chromozomes", "chromosomes"),
        ("loops", "loops"),
    ],
)
def test_a_slip_of_the_pen_is_mended(ann: APIClient, items: dict[str, Item], written: str, meant: str) -> None:
    found = search(ann, f"  {written} ")
    assert found["query"]["text"] == meant
    assert found["query"]["corrected"] == (written != meant)
    assert len(found["results"]) == 1


def test_what_is_like_no_word_is_left_as_it_is(ann: APIClient, items: dict[str, Item]) -> None:
    found = search(ann, "qwrtzpl")
    assert (found["query"]["text"], found["results"], found["next"]) == ("qwrtzpl", [], None)


def test_filters_and_facets(ann: APIClient, items: dict[str, Item]) -> None:
    both = search(ann, "cell fractions")
    assert both["facets"] == {
        "subject": {"biology": 1, "math": 1},
        "kind": {"article": 2},
        "level": {"beginner": 2},
    }
    assert titles(search(ann, "cell fractions", subject="math", level="beginner", kind="article")) == ["Fractions"]
    assert titles(search(ann, "cell fractions", level="advanced")) == []


def test_what_teaches_comes_before_what_fits_as_well(ann: APIClient, items: dict[str, Item]) -> None:
    for title, educational in (("Gravity a", 0.1), ("Gravity b", 0.9)):
        item = item_create(user=None, title=title)
        Enrichment.objects.create(
            item=item, source="s", models_digest="m", enriched_at=timezone.now(), embedding=[1.0] + [0.0] * 383,
            educational=educational, quality=0.5, level="beginner",
        )  # fmt: skip
    words_count()
    assert titles(search(ann, "gravity")) == ["Gravity b", "Gravity a"]


def test_pages_go_on(ann: APIClient, items: dict[str, Item]) -> None:
    first = search(ann, "cell fractions loop", page_size=2)
    second = ann.get(first["next"]).json()
    assert len(titles(first)) == 2
    assert sorted(titles(first) + titles(second)) == ["Cell division", "Fractions", "Loops in Python"]
    assert second["next"] is None


def test_archived_items_are_not_found(ann: APIClient, items: dict[str, Item]) -> None:
    item_archive(items=Item.objects.filter(title="Fractions"))
    assert titles(search(ann, "fractions")) == []


@pytest.mark.parametrize(
    "q",
    ["'; DROP TABLE users; --", "%%%___", "\u202ex", "a" * 1000, "\\", "a & ! | ( ) : *", "'", "😀", "\ue000x\ue001"],
)
def test_odd_characters_do_no_harm(ann: APIClient, items: dict[str, Item], q: str) -> None:
    search(ann, q)
    assert ann.get(SUGGEST, {"q": q[:100]}).status_code == 200


@pytest.mark.parametrize("q", ["", "   ", "a\x00b", "a" * 1001])
def test_an_empty_or_broken_query_is_named(ann: APIClient, q: str) -> None:
    for path in (SEARCH, SUGGEST):
        response = ann.get(path, {"q": q})
        assert (response.status_code, response.json()["errors"][0]["attr"]) == (400, "q")


def test_a_query_that_is_too_long_is_told_what_was_sent_and_what_fits(ann: APIClient) -> None:
    for path, longest in ((SEARCH, 1000), (SUGGEST, 100)):
        (error,) = ann.get(path, {"q": "a" * 1200}).json()["errors"]
        assert error["detail"] == f"Ensure this field has no more than {longest} characters; it has 1200."


# --- with a worker ---


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Does what a worker does, on a thread of its own."""
    monkeypatch.setattr("apps.search.services.PATIENCE_S", 5.0)
    ends = Event()

    def work() -> None:
        while not ends.wait(0.005):
            for job in Job.objects.filter(kind="understand", state=State.QUEUED):
                understand.understand(str(job.id))
        connection.close()

    understand._topics = None
    understand.topics()  # the models are loaded before anybody waits for them
    understand.intents()
    thread = Thread(target=work)
    thread.start()
    yield
    ends.set()
    thread.join()


@pytest.mark.django_db(transaction=True)
def test_a_query_is_understood_and_finds_by_meaning(
    ann: APIClient, items: dict[str, Item], request: pytest.FixtureRequest
) -> None:
    topic_save(slug="biology-plants", name="Plants and photosynthesis", subject="biology")
    request.getfixturevalue("worker")
    found = search(ann, "how does vegetation use the sun")
    assert titles(found)[0] == "Photosynthesis: how plants turn light into food"
    assert found["query"] == {
        "text": "how does vegetation use the sun",
        "corrected": False,
        "intent": "explain",
        "subject": "biology",
        "level": None,
        "adapter": None,
        "degraded": False,
    }
    assert search(ann, "beginner exercises on fractions")["query"]["level"] == "beginner"
    assert search(ann, "order a pizza")["query"]["intent"] == "off_topic"


@pytest.mark.django_db(transaction=True)
def test_a_query_is_understood_once(ann: APIClient, items: dict[str, Item], worker: None) -> None:
    search(ann, "light and leaves")
    search(ann, "light and leaves")
    assert Job.objects.filter(kind="understand").count() == 1


@pytest.mark.django_db(transaction=True)
def test_what_is_understood_too_late_is_there_for_the_next_who_asks(
    ann: APIClient, items: dict[str, Item], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert search(ann, "light and leaves")["query"]["degraded"]
    (job,) = Job.objects.filter(kind="understand")
    understand.understand(str(job.id))
    assert not search(ann, "light and leaves")["query"]["degraded"]
    assert Job.objects.filter(kind="understand").count() == 1


@pytest.mark.django_db(transaction=True)
def test_workers_read_few_queries_of_one_user_at_a_time(
    ann: APIClient, items: dict[str, Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "READ_AT_ONCE", 2)
    monkeypatch.setattr(services, "PATIENCE_S", 0.01)
    found = [search(ann, f"light and leaves {number}") for number in range(4)]
    assert [len(page["results"]) for page in found] == [len(found[0]["results"])] * 4
    assert Job.objects.filter(kind="understand").count() == 2


@pytest.mark.django_db(transaction=True)
def test_who_waits_for_a_reading_holds_no_connection(
    ann: APIClient, items: dict[str, Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, seen = connections["default"], []

    async def ended(job: Job, seconds: float) -> None:
        seen.append(ours.connection)

    monkeypatch.setattr(services, "_ended", ended)
    search(ann, "light and leaves")
    assert seen == [None]


@pytest.mark.django_db(transaction=True)
def test_suggestions_of_like_meaning(ann: APIClient, items: dict[str, Item], worker: None) -> None:
    suggestions = ann.get(SUGGEST, {"q": "repeat code with a list in python"}).json()["suggestions"]
    assert suggestions[0] == "Loops in Python"


# --- suggestions ---


def test_suggestions_begin_as_was_typed(ann: APIClient, items: dict[str, Item]) -> None:
    topic_save(slug="biology-photo", name="Photosynthesis", subject="biology")
    assert ann.get(SUGGEST, {"q": "photo"}).json()["suggestions"] == [
        "Photosynthesis",
        "Photosynthesis: how plants turn light into food",
    ]
    assert ann.get(SUGGEST, {"q": "div"}).json()["suggestions"] == ["Cell division"]


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("DIVISION", ["Cell division"]),
        ("cell  di", ["Cell division"]),
        ("div cell", []),
        ("ivision", []),
        ("light, in", ["Photosynthesis: how plants turn light into food"]),
        ("++ :* ' %_\\", []),
    ],
)
def test_suggestions_have_a_word_that_begins_so_after_the_words_before_it(
    ann: APIClient, items: dict[str, Item], typed: str, suggested: list[str]
) -> None:
    assert ann.get(SUGGEST, {"q": typed}).json()["suggestions"] == suggested


def test_suggestions_read_indexes(ann: APIClient) -> None:
    """With so many rows that Postgres would rather not look at them all."""
    user = User.objects.get(username="ann")
    words = [f"w{number % 997}x w{number % 499}y" for number in range(5000)]
    Item.objects.bulk_create(Item(title=title, body="", text="", source=str(n)) for n, title in enumerate(words))
    Topic.objects.bulk_create(Topic(slug=f"t-{n}", name=title, subject="math") for n, title in enumerate(words))
    Course.objects.bulk_create(Course(title=title) for title in words)
    Query.objects.bulk_create(Query(user=user, text=f"{title} {n}", results=1) for n, title in enumerate(words))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE content_item, content_topic, content_course, search_query")
        with CaptureQueriesContext(connection) as captured:
            found = suggestions(text="w12")
        plans = {}
        for asked in (query["sql"] for query in captured if "LIKE" in query["sql"] or "@@" in query["sql"]):
            cursor.execute(f"EXPLAIN {asked}")
            plans[asked] = "\n".join(line for (line,) in cursor.fetchall())
    assert len(found) == 8 and len(plans) == 4
    for index in ("topic_name_words", "query_begins", "course_title_words", "item_title_words"):
        assert sum(f" on {index}" in plan or f"using {index}" in plan for plan in plans.values()) == 1, plans
    assert not [plan for plan in plans.values() if re.search("Seq Scan on (content|search)_", plan)]  # one user is few


def test_what_others_asked_is_suggested_only_in_published_words(ann: APIClient, items: dict[str, Item]) -> None:
    learners = [client_of(f"u{number}") for number in range(3)]
    for client in learners[:2]:
        search(client, "cell loops")
    assert ann.get(SUGGEST, {"q": "cell l"}).json()["suggestions"] == []
    for client in learners:
        search(client, "cell loops")
    assert ann.get(SUGGEST, {"q": "cell l"}).json()["suggestions"] == []  # their accounts are new
    establish()
    for client in learners:
        Query.objects.create(user=client.handler._force_user, text="cell lechery", results=1)
    assert ann.get(SUGGEST, {"q": "cell l"}).json()["suggestions"] == ["cell loops"]


def test_short_words_that_nobody_published_are_not_suggested_either(ann: APIClient, items: dict[str, Item]) -> None:
    for number in range(3):
        user = User.objects.create_user(f"u{number}", f"u{number}@example.org")
        for text in ("cell sex", "cell 69", "cell s-e-x", "cell"):
            Query.objects.create(user=user, text=text, results=1)
    establish()
    assert ann.get(SUGGEST, {"q": "cel"}).json()["suggestions"] == ["cell", "Cell division"]


def test_pages_are_full_behind_a_rare_filter(items: dict[str, Item]) -> None:
    chance = np.random.default_rng(0)
    vectors = chance.standard_normal((3000, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = vectors[0]
    rare = np.argsort(vectors @ query)[:20]  # those farthest from what is asked for
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE doc (place int PRIMARY KEY, rare bool, embedding vector(384)) ON COMMIT DROP"
        )
        rows = [(place, place in rare, str(vector.tolist())) for place, vector in enumerate(vectors)]
        cursor.executemany("INSERT INTO doc VALUES (%s, %s, %s)", rows)
        cursor.execute(
            "CREATE INDEX ON doc USING hnsw (embedding vector_ip_ops); ANALYZE doc; SET LOCAL enable_seqscan = off"
        )
    table = retrieval.Table("doc", "doc", "place", "words", "embedding", "rare")
    assert set(retrieval.by_meaning(query.tolist(), table, depth=20)) == set(rare.tolist())


# --- queries and words ---


def test_queries_are_kept_for_staff_and_go_with_their_learner(
    ann: APIClient, items: dict[str, Item], admin_client: Any
) -> None:
    for q in ("Fractions", "fractions", "qwrtzpl"):
        search(ann, q)
    page = admin_client.get("/admin/search/query/").context
    assert page["popular"]["rows"] == [["fractions", 1, 2], ["qwrtzpl", 1, 1]]
    assert page["not_found"]["rows"] == [["qwrtzpl", 1, 1]]
    assert [one["text"] for one in exported(ann)["searches"]] == [
        "fractions",
        "fractions",
        "qwrtzpl",
    ]
    Query.objects.filter(results=0).update(at="2026-01-01T00:00:00Z")
    assert queries_forget() == 1
    user_erase(user=Query.objects.first().user)
    assert not Query.objects.exists()


def test_queries_of_those_who_agreed_become_examples_for_staff_to_review(ann: APIClient) -> None:
    asked_at = timezone.now() - timedelta(hours=1)
    agreed = {"birth_year": 1990, "training_consented_at": asked_at - timedelta(minutes=1)}
    bob = User.objects.create_user("bob", "bob@example.org", **agreed)
    query = {"text": "what is osmosis for bob", "results": 3, "intent": "define", "subject": "biology"}
    Query.objects.create(user=bob, at=asked_at, **query)
    Query.objects.create(user=bob, at=asked_at - timedelta(hours=1), **{**query, "text": "before he agreed"})
    Query.objects.create(user=bob, at=asked_at, text="not understood", results=0)
    Query.objects.create(user=User.objects.get(username="ann"), at=asked_at, **query)
    assert dict(examples_collect(source="queries")) == {"added": 1}
    example = Example.objects.get()
    assert (example.task, example.format, example.subject, example.state) == ("query", "query", "biology", "pending")
    assert example.content == {
        "query": "what is osmosis for <PERSON>", "intent": "define", "subject": "biology", "level": "",
    }  # fmt: skip
    assert dict(examples_collect(source="queries")) == {}
    user_erase(user=bob)
    assert not Example.objects.exists()


def test_words_are_counted_anew(ann: APIClient, items: dict[str, Item]) -> None:
    assert Word.objects.get(form="written", word="fractions").documents == 1
    item_create(user=None, title="More fractions")
    words_count()
    assert Word.objects.get(form="written", word="fractions").documents == 2
    assert Word.objects.get(form="stem", word="fraction").documents == 2


def test_words_are_counted_again_only_when_something_has_changed(ann: APIClient, items: dict[str, Item]) -> None:
    assert words_refresh() is True
    assert words_refresh() is False
    item_archive(items=Item.objects.filter(title="Fractions"))
    assert words_refresh() is True
    assert not Word.objects.filter(word="fractions").exists()


def test_a_page_costs_few_queries(
    ann: APIClient, items: dict[str, Item], django_assert_num_queries: DjangoAssertNumQueries, monkeypatch: Any
) -> None:
    monkeypatch.setattr("apps.search.services.query_ask", lambda **given: Asked("", None, None, 0.0))
    search(ann, "cell")
    with django_assert_num_queries(12):  # four of them are savepoints of a test's transaction
        search(ann, "cell fractions")
    with django_assert_num_queries(4):
        ann.get(SUGGEST, {"q": "cell"})


def test_search_needs_a_login() -> None:
    assert APIClient().get(SEARCH, {"q": str(uuid4())}).status_code == 401
