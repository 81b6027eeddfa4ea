from collections.abc import Iterator
from typing import Any
from uuid import UUID

from django.db.models import Case, F, Prefetch, Q, QuerySet, Value, When
from django.db.models.functions import Coalesce, NullIf
from rest_framework.exceptions import NotFound

from apps.common.streaming import paged
from apps.content.models import Course, Enrichment, Item, Status, Topic
from apps.users.models import User


def may_change(user: User, one: Item | Course, action: str = "change") -> bool:
    """Whoever has the permission changes (or deletes) all; who may add some, such as a teacher, what they made."""
    name = one._meta.model_name
    mine = one.user_id == user.pk and user.has_perm(f"content.add_{name}")
    return mine or user.has_perm(f"content.{action}_{name}")


def content_export(user: User) -> dict[str, Any]:
    """What a user has written."""

    def rows(model: type[Item] | type[Course], *fields: str) -> Iterator[dict[str, Any]]:
        of_user = model._default_manager.filter(user=user)
        return paged(of_user.values("id", "created_at", "title", "status", *fields), "created_at", "id", size=20)

    return {"items": rows(Item, "body", "author", "tags"), "courses": rows(Course, "description")}


# --- topics ---


def topic_list(**filters: Any) -> QuerySet[Topic]:
    """In the order of teaching, by `subject` or `parent__slug`."""
    return Topic.objects.filter(**filters).select_related("parent").prefetch_related("prerequisites")


def topic_get(*, slug: str) -> Topic:
    topic = topic_list(slug=slug).first()
    if topic is None:
        raise NotFound
    return topic


# --- items ---


def item_list(**filters: Any) -> QuerySet[Item]:
    """Newest first, with topics and enrichment; those of unknown level count as what they were estimated to be."""
    return (
        Item.objects.annotate(level_known=Coalesce(NullIf(F("level"), Value("")), "enrichment__level"))
        .filter(**filters)
        .select_related("enrichment")
        .defer("enrichment__embedding")
        .prefetch_related(Prefetch("topics", Topic.objects.only("slug").order_by("subject", "position", "slug")))
    )


def item_get_for_user(*, user: User, item_id: UUID) -> Item:
    """Raises `NotFound`, also for what is not published where the user may not change it."""
    item = item_list(id=item_id).first()
    if item is None or (item.status != Status.PUBLISHED and not may_change(user, item)):
        raise NotFound
    return item


def item_list_for_user(*, user: User, status: str = Status.PUBLISHED, **filters: Any) -> QuerySet[Item]:
    """Published ones; of others those that the user may change."""
    items = item_list(status=status, **filters)
    return items if status == Status.PUBLISHED else items.filter(_changeable(user, Item))


def item_card(item: Item) -> dict[str, Any]:
    """An item of `item_list` without its body, for lists of other apps. A level that nobody gave is an estimate."""
    found = item.enrichment if hasattr(item, "enrichment") else None
    return {
        "id": item.id,
        "title": item.title,
        "kind": item.kind,
        "subject": item.subject,
        "topics": [topic.slug for topic in item.topics.all()],
        "level": item.level or (found.level if found else None),
        "language": item.language,
        "duration": item.duration,
        "tags": item.tags,
        "author": item.author,
        "educational": found.educational if found else None,
        "quality": found.quality if found else None,
        "created_at": item.created_at,
    }


def item_source(item: Item) -> str:
    """What models read of it."""
    return f"{item.title}\n\n{item.text}"


# --- enrichment ---


def item_pending(*, models_digest: str | None = None) -> QuerySet[Item]:
    """What is to be enriched: first what never was, then what has changed, then what other models have read.

    models_digest: of the models; where none is given, of those that read last.
    """
    digest = models_digest
    if digest is None:
        digest = Enrichment.objects.order_by("-enriched_at").values_list("models_digest", flat=True).first()
    changed = ~Q(enrichment__source=F("source"))
    stale = Q(enrichment=None) | changed
    if digest is not None:
        stale |= ~Q(enrichment__models_digest=digest)
    urgency = Case(When(enrichment=None, then=0), When(changed, then=1), default=2)
    return Item.objects.exclude(status=Status.ARCHIVED).filter(stale).order_by(urgency, "-created_at", "-id")


def enrichment_progress() -> dict[str, int]:
    """How many items there are, and how many of them wait."""
    return {"items": Item.objects.exclude(status=Status.ARCHIVED).count(), "pending": item_pending().count()}


# --- courses ---


def course_list_for_user(*, user: User, status: str = Status.PUBLISHED, **filters: Any) -> QuerySet[Course]:
    courses = Course.objects.filter(status=status, **filters)
    return courses if status == Status.PUBLISHED else courses.filter(_changeable(user, Course))


def course_get_for_user(*, user: User, course_id: UUID) -> Course:
    """With its units and their published lessons. Raises `NotFound` as `item_get_for_user` does."""
    lessons = Prefetch("units__places__item", Item.objects.only("title", "kind", "subject", "duration", "status"))
    course = Course.objects.filter(id=course_id).prefetch_related(lessons).first()
    if course is None or (course.status != Status.PUBLISHED and not may_change(user, course)):
        raise NotFound
    return course


def _changeable(user: User, model: type[Item | Course]) -> Q:
    """As `may_change` has it."""
    name = model._meta.model_name
    if user.has_perm(f"content.change_{name}"):
        return Q()
    return Q(user=user) if user.has_perm(f"content.add_{name}") else Q(pk=None)
