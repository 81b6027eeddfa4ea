from collections.abc import Iterable, Sequence
from enum import StrEnum
from hashlib import sha256
from typing import Any

from django.db import connection, transaction
from django.db.models import QuerySet
from rest_framework.exceptions import NotFound, ValidationError

from apps.content.html import sanitised, words_of
from apps.content.models import Course, Enrichment, Item, Lesson, Status, Topic, Unit
from apps.content.selectors import item_source
from apps.jobs.models import ACTIVE, Job
from apps.jobs.services import job_create
from apps.users.models import User

Fields = dict[str, Any]

# --- topics ---


@transaction.atomic
def topic_save(*, slug: str, parent: Topic | None = None, prerequisites: Iterable[Topic] = (), **fields: Any) -> Topic:
    """Make the topic, or change it. Raises `ValidationError` where it would come before itself."""
    topic = Topic.objects.update_or_create(slug=slug, defaults={"parent": parent, **fields})[0]
    topic.prerequisites.set(prerequisites)
    if topic_leads_to_itself(topic):
        raise ValidationError({"prerequisites": ["They lead back to the topic itself."]})
    return topic


def topic_leads_to_itself(topic: Topic) -> bool:
    """Whether it is among its own ancestors, or among all that must be known before it."""
    edges: dict[Any, set[Any]] = {}
    for before, after in Topic.prerequisites.through.objects.values_list("to_topic", "from_topic"):
        edges.setdefault(after, set()).add(before)
    parents = {child: {parent} for child, parent in Topic.objects.exclude(parent=None).values_list("pk", "parent")}
    return any(topic.pk in _reached(topic.pk, graph) for graph in (edges, parents))


def _reached(start: Any, edges: dict[Any, set[Any]]) -> set[Any]:
    reached: set[Any] = set()
    frontier = edges.get(start, set())
    while frontier:
        reached |= frontier
        frontier = set().union(*(edges.get(node, set()) for node in frontier)) - reached
    return reached


# --- items ---


@transaction.atomic
def item_create(*, user: User | None, topics: Iterable[Topic] = (), **fields: Any) -> Item:
    """fields: those of `Item`; the body is sanitised."""
    item = Item(user=user)
    _assign(item, fields)
    item.save()
    item.topics.set(topics)
    enrichment_request()
    return item


@transaction.atomic
def item_update(*, item: Item, topics: Iterable[Topic] | None = None, **fields: Any) -> Item:
    """Returns the item as it then is: with what others have changed meanwhile."""
    item = Item.objects.select_for_update().get(pk=item.pk)
    before = item.source
    _assign(item, fields)
    item.save()
    if topics is not None:
        item.topics.set(topics)
    if item.source != before:
        enrichment_request()
    return item


# --- enrichment ---

JOB_KIND = "enrich"


@transaction.atomic
def enrichment_request() -> Job | None:
    """Have a worker look at what waits, unless one is at it or is being asked: what comes too late, beat asks for."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(hashtextextended('enrichment', 0))")
        if cursor.fetchone() == (False,):
            return None
    if Job.objects.filter(kind=JOB_KIND, state__in=ACTIVE).exists():
        return None
    return job_create(kind=JOB_KIND, request={})


def enrichment_record(enrichments: Iterable[Enrichment]) -> None:
    """Keep what was found; `source` is of what was read, so that what has changed meanwhile goes on waiting."""
    fields = [field.name for field in Enrichment._meta.concrete_fields if not field.primary_key]
    Enrichment.objects.bulk_create(enrichments, update_conflicts=True, unique_fields=["item"], update_fields=fields)


# --- the end of items ---


def item_archive(*, items: QuerySet[Item]) -> int:
    """Take them from everybody's sight; returns how many were not archived before."""
    return items.exclude(status=Status.ARCHIVED).update(status=Status.ARCHIVED)


def _assign(item: Item, fields: Fields) -> None:
    for name, value in fields.items():
        setattr(item, name, value)
    item_derive(item)


def item_derive(item: Item) -> None:
    """Sanitise the body, and set what follows from title and body."""
    item.body = sanitised(item.body)
    item.text = words_of(item.body)
    item.source = sha256(item_source(item).encode()).hexdigest()


# --- catalogues ---


class Outcome(StrEnum):
    ADDED = "added"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@transaction.atomic
def item_put(*, key: str, topics: Sequence[Topic] = (), **fields: Any) -> Outcome:
    """Make or change the item of a catalogue. What its source does not say any more falls back to the default."""
    item = Item.objects.filter(key=key).first()
    if item is None:
        item_create(user=None, key=key, topics=topics, **fields)
        return Outcome.ADDED
    before = _state(item)
    after = _state(item_update(item=item, topics=topics, **fields))
    return Outcome.UNCHANGED if after == before else Outcome.CHANGED


def _state(item: Item) -> tuple[Fields, set[Any]]:
    derived = ("updated_at", "words")
    fields = {f.attname: getattr(item, f.attname) for f in Item._meta.concrete_fields if f.attname not in derived}
    return fields, set(item.topics.values_list("pk", flat=True))


@transaction.atomic
def topic_put(*, slug: str, **fields: Any) -> Outcome:
    there = Topic.objects.filter(slug=slug).first()
    before = _topic_state(there) if there else None
    after = _topic_state(topic_save(slug=slug, **fields))
    return Outcome.ADDED if before is None else Outcome.UNCHANGED if before == after else Outcome.CHANGED


def _topic_state(topic: Topic) -> tuple[Any, ...]:
    prerequisites = set(topic.prerequisites.values_list("pk", flat=True))
    return topic.name, topic.subject, topic.parent_id, topic.position, prerequisites


@transaction.atomic
def course_put(*, key: str, units: Sequence[Fields] = (), **fields: Any) -> Outcome:
    course = Course.objects.filter(key=key).first()
    if course is None:
        course_create(user=None, key=key, units=units, **fields)
        return Outcome.ADDED
    before = _course_state(course)
    after = _course_state(course_update(course=course, units=units, **fields))
    return Outcome.UNCHANGED if after == before else Outcome.CHANGED


def _course_state(course: Course) -> tuple[Any, ...]:
    lessons = list(course.units.values_list("title", "places__item").order_by("position", "places__position"))
    return course.title, course.description, course.subject, course.level, course.language, course.status, lessons


# --- courses ---


@transaction.atomic
def course_create(*, user: User | None, units: Sequence[Fields] = (), **fields: Any) -> Course:
    """units: each a `title` and its `lessons`, items, in order."""
    course = Course.objects.create(user=user, **fields)
    _set_units(course, units)
    return course


@transaction.atomic
def course_update(*, course: Course, units: Sequence[Fields] | None = None, **fields: Any) -> Course:
    """units: if given, they replace those that were there. Returns the course as it then is; raises `NotFound`."""
    locked = Course.objects.select_for_update().filter(pk=course.pk).first()
    if locked is None:
        raise NotFound
    course = locked
    for name, value in fields.items():
        setattr(course, name, value)
    course.save()
    if units is not None:
        course.units.all().delete()
        _set_units(course, units)
    return course


def _set_units(course: Course, units: Sequence[Fields]) -> None:
    made = Unit.objects.bulk_create(
        Unit(course=course, title=unit["title"], position=position) for position, unit in enumerate(units)
    )
    Lesson.objects.bulk_create(
        Lesson(unit=unit, item=item, position=position)
        for unit, given in zip(made, units, strict=True)
        for position, item in enumerate(given["lessons"])
    )
