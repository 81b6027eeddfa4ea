"""What can be said of items without a worker: from the items themselves, from the learner's profile, from the trend."""

from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.db.models import Case, CharField, Exists, F, FloatField, OuterRef, Q, QuerySet, Value, When, Window
from django.db.models.expressions import CombinedExpression, RawSQL
from django.db.models.functions import Coalesce, RowNumber

from apps.common.constants import Level
from apps.content.models import Item, Topic
from apps.feed.entries import PARTS, Entry
from apps.feed.models import Follow
from apps.users.models import User

OF_A_SUBJECT = 30  # that teach, and as many that do not: so many subjects are there to be mixed
HALF_AGE_S = 30 * 86_400  # after which an item is half as fresh
TEACHES = 0.5

AGE_S = RawSQL("extract(epoch FROM now() - content_item.created_at)", (), FloatField())


def with_parts(items: QuerySet[Item], user: User | None, weights: dict[str, float], limit: int) -> list[Item]:
    """The best `limit` of `items` (of `item_list`), each with its parts as `part_…`."""
    parts: dict[str, Any] = {
        "educational": F("enrichment__educational"),
        "quality": F("enrichment__quality"),
        "trend": Coalesce(F("trend__score"), 0.0),
        "freshness": CombinedExpression(
            Value(0.5), "^", CombinedExpression(AGE_S, "/", Value(float(HALF_AGE_S)), FloatField()), FloatField()
        ),
    }
    if user is not None:
        follows = Follow.objects.filter(user=user, author=OuterRef("author"))
        parts |= {
            "interest": _interest(user.interests),
            "level": _level(user.level),
            "language": _if(_in_language(user.language.partition("-")[0])),
            "followed": _if(Exists(follows)),
        }
    total = sum((weights[name] * F(f"part_{name}") for name in parts), Value(0.0))
    teaches = Case(When(enrichment__educational__gte=TEACHES, then=True), default=False)
    best = (
        items.annotate(**{f"part_{name}": expression for name, expression in parts.items()})
        .annotate(total=total, teaches=teaches)
        .annotate(place=Window(RowNumber(), ["subject", "teaches"], [F("total").desc(), "pk"]))
        .filter(place__lte=OF_A_SUBJECT)
        .order_by("-total", "pk")
    )
    return list(best[:limit])


def entry_of(item: Item, user: User | None) -> Entry:
    """item: of `with_parts`."""
    parts = {name: float(getattr(item, f"part_{name}")) for name in PARTS if hasattr(item, f"part_{name}")}
    reasons = []
    if user is not None and parts["followed"]:
        reasons.append(("followed", item.author))
    if user is not None and parts["interest"]:
        reasons.append(("interest", _named(item, user.interests)))
    if parts["trend"] > 0.2:
        reasons.append(("trending", ""))
    if user is not None and parts["level"] == 1 and parts["educational"] >= TEACHES:
        reasons.append(("level", user.level))
    if not reasons:
        teaches = parts["educational"] >= TEACHES and parts["quality"] >= TEACHES
        reasons.append(("educational" if teaches else "new" if parts["freshness"] > 0.5 else "explore", ""))
    return Entry(
        item=str(item.pk),
        subject=item.subject,
        author=item.author,
        teaches=parts["educational"] >= TEACHES,
        parts={name: round(value, 4) for name, value in parts.items()},
        reasons=reasons,
    )


def _interest(interests: list[str]) -> Any:
    named = [interest.lower() for interest in interests]
    if not named:
        return Value(0.0)
    topics = Topic.objects.filter(items=OuterRef("pk")).filter(Q(slug__in=named) | Q(name__in=interests))
    tags = Value(named, ArrayField(CharField()))
    return _if(Q(subject__in=named) | Q(tags__overlap=tags) | Exists(topics))


def _if(condition: Any) -> Case:
    return Case(When(condition, then=1.0), default=0.0, output_field=FloatField())


def _in_language(language: str) -> Q:
    """A variant of a language is that language."""
    return Q(language__iexact=language) | Q(language__istartswith=f"{language}-")


def _level(level: str) -> Any:
    """1 for the learner's, 0.5 for the next to it."""
    place = Level.values.index(level)
    near = [other for other in Level.values if abs(Level.values.index(other) - place) == 1]
    return Case(
        When(level_known=level, then=1.0), When(level_known__in=near, then=0.5), default=0.0, output_field=FloatField()
    )


def _named(item: Item, interests: list[str]) -> str:
    """The interest that the item meets, as the learner wrote it."""
    for interest in interests:
        if interest.lower() in (item.subject, *item.tags):
            return interest
    return next((topic.slug for topic in item.topics.all()), item.subject)
