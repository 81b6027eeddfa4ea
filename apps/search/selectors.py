import html
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import NAMESPACE_OID, UUID, uuid5

from django.contrib.postgres.search import SearchHeadline, SearchQuery
from django.db.models import Count, F, Max, QuerySet, Value
from django.db.models.functions import Left
from django.utils import timezone

from apps.common.constants import Subject, Task
from apps.common.examples import Observation
from apps.common.streaming import paged
from apps.common.titles import Begun, Has, TitleWords
from apps.content.models import Course, Item, Status, Topic
from apps.content.selectors import item_list
from apps.search import words
from apps.search.models import Query
from apps.search.retrieval import literal
from apps.users.models import User
from lyo import env

SOURCE = "queries"  # of examples
KEPT = timedelta(days=env.QUERY_DAYS)  # queries
LEARNERS = 3  # of some standing, who asked the same, before it is suggested to others
SUGGESTIONS, CONSIDERED = 8, 100
HEAD = 20_000  # characters of a text in which a snippet is looked for
OPEN, CLOSE = "\ue000", "\ue001"  # around what was found: no text has them


class Facts(NamedTuple):
    """What an item is ranked and counted by."""

    id: UUID
    subject: str
    kind: str
    level: str | None
    educational: float
    quality: float


def facts_of(ids: list[UUID]) -> dict[UUID, Facts]:
    fields = ("id", "subject", "kind", "level_known", "enrichment__educational", "enrichment__quality")
    rows = item_list(id__in=ids).prefetch_related(None).values_list(*fields)
    return {row[0]: Facts(*row) for row in rows}


def facets(facts: list[Facts]) -> dict[str, dict[str, int]]:
    """How many of what was found are of each subject, kind and level."""
    return {
        name: dict(Counter(value for one in facts if (value := getattr(one, name))).most_common())
        for name in ("subject", "kind", "level")
    }


def found_items(*, ids: list[UUID], stems: list[str]) -> list[tuple[Item, str]]:
    """Items in the order of `ids`, each with the part of its text in which the stems are, marked, as HTML."""
    items = item_list(id__in=ids)
    if stems:
        query = SearchQuery(" | ".join(map(literal, stems)), search_type="raw", config="simple")
        headline = SearchHeadline(
            Left("text", HEAD), query, config="english", start_sel=OPEN, stop_sel=CLOSE, max_words=35, min_words=15
        )
        items = items.annotate(snippet=headline)
    by_id = {item.pk: item for item in items}
    return [(by_id[pk], _marked(getattr(by_id[pk], "snippet", by_id[pk].text[:200]))) for pk in ids if pk in by_id]


def _marked(snippet: str) -> str:
    return html.escape(snippet).replace(OPEN, "<mark>").replace(CLOSE, "</mark>")


# --- suggestions ---


def suggestions(*, text: str) -> list[str]:
    """Topics, courses, titles of items, and what several learners searched for, that have a word beginning so.

    Only what is published, and of queries those whose words all are: what a minor is shown, somebody has published.
    """
    topics = Topic.objects.filter(_begins("name", text)).order_by("name").values_list("name", flat=True)
    courses = Course.objects.filter(_begins("title", text), status=Status.PUBLISHED).order_by("title")
    titles = Item.objects.filter(_begins("title", text), status=Status.PUBLISHED).order_by("title")
    asked = (
        Query.objects.filter(text__startswith=text.lower(), results__gt=0, at__gt=timezone.now() - KEPT)
        .filter(user__established_at__isnull=False)
        .values("text")
        .annotate(learners=Count("user", distinct=True))
        .filter(learners__gte=LEARNERS)
        .order_by("-learners", "text")
        .values_list("text", flat=True)
    )
    known = words.vocabulary().knows
    found = [
        *topics[:SUGGESTIONS],
        *[query for query in asked[:CONSIDERED] if known(query)][:SUGGESTIONS],
        *courses.values_list("title", flat=True)[:SUGGESTIONS],
        *titles.values_list("title", flat=True)[:SUGGESTIONS],
    ]
    first = sorted(dict.fromkeys(found), key=lambda one: not one.lower().startswith(text.lower()))
    return first[:SUGGESTIONS]


def _begins(field: str, text: str) -> Has:
    return Has(TitleWords(field), Begun(Value(text)))


# --- what there is ---


def content_version() -> str:
    """Changes with what is published and with what it says."""
    found = Item.objects.filter(status=Status.PUBLISHED).aggregate(count=Count("id"), last=Max("updated_at"))
    return f"{found['count']} {found['last']}"


# --- queries ---


def popular_queries(*, days: int = 30, without_results: bool = False, count: int = 10) -> list[Any]:
    """What most learners asked, or what they asked and did not find."""
    rows = Query.objects.filter(at__gt=timezone.now() - timedelta(days=days))
    if without_results:
        rows = rows.filter(results=0)
    grouped = rows.values("text").annotate(times=Count("id"), learners=Count("user", distinct=True), last=Max("at"))
    return list(grouped.order_by("-learners", "-times", "text")[:count])


def query_list_old() -> QuerySet[Query]:
    return Query.objects.filter(at__lt=timezone.now() - KEPT)


def query_export(user: User) -> Iterator[dict[str, Any]]:
    fields = ("id", "text", "results", "intent", "subject", "level", "at")
    return paged(Query.objects.filter(user=user).values(*fields), "at", "id")


def query_observe(learners: QuerySet[User], since: datetime, until: datetime) -> Iterator[Observation]:
    """What learners searched for since their consent, as it was understood: staff who review it say what was meant."""
    asked = Query.objects.filter(user__in=learners, at__gte=since, at__lte=until).exclude(intent="")
    for query in asked.filter(at__gte=F("user__training_consented_at")).order_by("at").iterator():
        yield Observation(
            id=uuid5(NAMESPACE_OID, f"query {query.pk}"),
            learner_id=query.user_id,
            task=Task.QUERY,
            subject=Subject(query.subject or Subject.GENERAL),
            record={"query": query.text, "intent": query.intent, "subject": query.subject, "level": query.level},
            done_at=query.at,
            changed_at=query.at,
        )
