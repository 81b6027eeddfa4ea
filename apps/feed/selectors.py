import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import structlog
from django.contrib.postgres.aggregates import BoolOr
from django.core.cache import caches
from django.db import connection
from django.db.models import Case, Count, Exists, F, FloatField, Max, Min, OuterRef, Q, QuerySet, When
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce, TruncHour
from django.utils import timezone
from rest_framework.exceptions import NotFound

from apps.common import redis
from apps.common.constants import Subject, Task
from apps.common.examples import Observation
from apps.common.streaming import paged
from apps.content.models import Item, Status, Topic
from apps.content.selectors import item_card, item_list
from apps.feed.entries import PARTS, Entry
from apps.feed.models import SHARE, Event, EventKey, Follow, Foresight, Ranker, Ranking, Reader, Weights
from apps.users.models import User

logger = structlog.get_logger(__name__)

ENDS = (Event.Type.COMPLETE, Event.Type.HIDE)  # after which an item is not shown again
COLD_AGE = timedelta(minutes=5)  # after which what was known without a worker is looked up anew
LATE = timedelta(seconds=60)  # after which scores that do not know the last events are called stale
RENEWED = timedelta(days=1)  # after which new items are looked at, whatever a learner did
ACTIVE = timedelta(days=30)  # since a learner did something
FORESEEN_FOR = timedelta(days=7)  # the same, for those for whom the language model foresees
CARD_S = 10
READ_PER_S = 17  # characters: 200 words a minute
CACHED_S = 7 * 86_400
PAGED_FOR = timedelta(minutes=30)  # since pages of a ranking were asked for, they go on as they began


# --- weights ---


def weights_get() -> dict[str, float]:
    """Those in force. Each process looks at most every few seconds."""
    kept = caches["process"].get("feed.weights")
    if kept is None:
        row = Weights.objects.first() or Weights()
        kept = {name: getattr(row, name) for name in (*PARTS, "same_subject", "same_author")}
        caches["process"].set("feed.weights", kept, 5)
    return dict(kept)


# --- readers ---


def reader_get(*, user: User) -> Reader:
    """As the feed knows them; one that it does not know yet is not saved."""
    return Reader.objects.filter(user=user).first() or Reader(user=user, educational_share=SHARE)


def profile_digest(user: User) -> str:
    """Of what the learner says of themselves: another one needs another ranking."""
    return sha256(json.dumps([sorted(user.interests), user.level, user.language]).encode()).hexdigest()


def reader_list_due(*, now: datetime, ranker: str, patience: timedelta) -> QuerySet[Reader]:
    """Those whose scores do not know their last events, the longest waiting first; then those who were there lately
    and whose scores do not know the live ranker or, once a day, the new items. Not those that were asked for since.
    """
    behind = Q(scored_until=None) | Q(scored_until__lt=F("events_at"))
    outdated = Q(events_at__gt=now - ACTIVE) & (~Q(ranker=ranker) | Q(requested_at__lt=now - RENEWED))
    unasked = Q(requested_at=None) | Q(requested_at__lt=F("events_at")) | Q(requested_at__lt=now - patience)
    return Reader.objects.filter(behind | outdated, unasked, events_at__isnull=False).order_by(
        Case(When(behind, then=0), default=1), Coalesce("scored_until", "events_at")
    )


def reader_list_unforeseen(*, now: datetime, adapter: str) -> QuerySet[Reader]:
    """Those who were here lately, the last first, and for whom this adapter foresaw nothing since."""
    foreseen = Foresight.objects.filter(user=OuterRef("user"), adapter=adapter, made_at__gt=OuterRef("events_at"))
    lately = Reader.objects.filter(events_at__gt=now - FORESEEN_FOR, number__gt=0)
    return lately.filter(~Exists(foreseen)).order_by("-events_at", "pk")


def foreseen_since(*, user_ids: Sequence[Any], adapter: str, since: datetime) -> set[str]:
    """Those of the learners for whom the adapter foresaw after a time."""
    foreseen = Foresight.objects.filter(user__in=user_ids, adapter=adapter, made_at__gte=since)
    return {str(user) for user in foreseen.values_list("user", flat=True)}


def foresight_wanted(*, user_id: UUID, best: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The learner's profile, and what the best of their newest ranking are about, by item; no item where there is none.

    The order is that of the weights without what was foreseen before, for else it would foresee the same for ever.
    """
    reader = Reader.objects.select_related("user").filter(user=user_id).first()
    if reader is None:  # erased meanwhile
        return {}, {}
    ranking = ranking_get(user=reader.user, number=reader.number)
    weights = {**weights_get(), "foresight": 0.0}
    entries = entries_of(ranking) if ranking else []
    first = sorted(entries, key=lambda entry: -entry.score(weights))[:best]
    items = Item.objects.in_bulk([entry.item for entry in first])
    return _profile(reader.user), {str(key): _about(item) for key, item in items.items()}


def _about(item: Item) -> dict[str, Any]:
    """An item as the format of examples of engagement has it."""
    seconds = item.duration if item.duration is not None else len(item.text) // READ_PER_S
    return {"type": item.kind, "subject": item.subject, "duration": seconds, "tags": item.tags}


def _profile(user: User) -> dict[str, Any]:
    return {"interests": user.interests, "level": user.level}


def foresights_of(*, user_ids: Sequence[Any], adapter: str) -> dict[UUID, dict[str, float]]:
    """What the adapter foresaw for learners: 0 to 1, by item."""
    return dict(Foresight.objects.filter(user__in=user_ids, adapter=adapter).values_list("user", "values"))


# --- rankings ---


def ranking_get(*, user: User | None, number: int) -> Ranking | None:
    """From Redis where it has it, else from Postgres."""
    kept = _cached(user.pk) if user is not None else None
    if kept and kept["number"] == number:
        times = {name: datetime.fromisoformat(kept[name]) for name in ("until", "made_at") if name in kept}
        return Ranking(user=user, **kept | times)
    ranking = Ranking.objects.filter(user=user, number=number).first()
    if ranking is not None and (kept is None or kept["number"] < number):
        ranking_cache(ranking)
    return ranking


def ranking_cache(ranking: Ranking) -> None:
    """Keep a learner's newest ranking in Redis; not of one who has left meanwhile."""
    user_id = ranking.user_id
    if user_id is None:
        return
    kept = {
        "number": ranking.number,
        "origin": ranking.origin,
        "entries": ranking.entries,
        "until": ranking.until.isoformat(),
        "made_at": ranking.made_at.isoformat(),
    }
    redis.ask_cache(lambda cache: cache.set(cache_key(user_id), json.dumps(kept), ex=CACHED_S), otherwise=None)
    if not User.objects.filter(pk=user_id).exists():  # asked after it is kept: it was, or will be, deleted before that
        redis.ask_cache(lambda cache: cache.delete(cache_key(user_id)), otherwise=None)


def ranking_general() -> Ranking | None:
    """The newest of those for everybody, if it is not too old."""
    return Ranking.objects.filter(user=None, made_at__gt=timezone.now() - COLD_AGE).order_by("-number").first()


CACHE = "lyo:feed:"
EVERYBODY = UUID(int=0)  # whose feed is nobody's


def cache_key(user_id: UUID) -> str:
    return f"{CACHE}{user_id}"


def rest_key(user_id: UUID | None) -> str:
    return f"{CACHE}rest:{user_id or EVERYBODY}"


def _cached(user_id: UUID) -> dict[str, Any] | None:
    text = redis.ask_cache(lambda cache: cache.get(cache_key(user_id)), otherwise=None)
    return json.loads(text) if text else None


def entries_of(ranking: Ranking) -> list[Entry]:
    return [Entry(**entry) for entry in ranking.entries]


def ranking_state(*, reader: Reader, ranking: Ranking) -> str:
    """In a word: whether workers have seen what the learner did last."""
    late = reader.events_at is not None and (
        reader.scored_until is None or (reader.scored_until < reader.events_at < timezone.now() - LATE)
    )
    if ranking.origin == Ranking.Origin.COLD:
        return "trending" if late else "cold"
    return "stale" if late else str(ranking.origin)


def rest_of(*, ranking: Ranking, filters: dict[str, Any], make: Callable[[], list[Entry]]) -> list[Entry]:
    """What fills a filtered ranking up: made once, so that its pages go on as they began."""
    key = rest_key(ranking.user_id)  # a hash of all that there is of a learner's, so that it can be deleted
    name = sha256(json.dumps([ranking.number, filters], sort_keys=True).encode()).hexdigest()
    text = redis.ask_cache(lambda cache: cache.hget(key, name), otherwise=None)
    if text:
        return [Entry(**entry) for entry in json.loads(text)]
    made = make()
    kept = json.dumps([entry.dump() for entry in made])

    def keep(cache: Any) -> None:
        with cache.pipeline() as pipe:
            pipe.hset(key, name, kept).expire(key, PAGED_FOR).execute()

    redis.ask_cache(keep, otherwise=None)
    return made


# --- events ---


def ended_since(*, reader: Reader, ranking: Ranking) -> set[str]:
    """Ids of the items that the learner completed or hid since the ranking; no query where they did nothing since."""
    sure = ranking.until - timedelta(seconds=10)  # a transaction may have ended after it
    knows_all = ranking.origin == Ranking.Origin.SCORED and reader.events_at == ranking.until
    if reader.events_at is None or knows_all or reader.events_at < sure:
        return set()
    events = Event.objects.filter(user=reader.user_id, at__gte=sure, type__in=ENDS)
    return {str(item) for item in events.values_list("item", flat=True)}


def event_hours(*, days: int = 2) -> list[tuple[datetime, str, int]]:
    """How many events of each type each hour had."""
    since = timezone.now() - timedelta(days=days)
    hours = Event.objects.filter(at__gte=since).annotate(hour=TruncHour("at")).values("hour", "type")
    return list(hours.annotate(count=Count("id")).order_by("hour", "type").values_list("hour", "type", "count"))


# --- what there is to learn from ---

SOURCE = "feed"  # the name of what is observed here
LIKED_MOST = 3.0  # the most of `WEIGHT`


def engagement_observe(learners: QuerySet[User], since: datetime, until: datetime) -> Iterator[Observation]:
    """How much learners took to items since their consent: nothing where they hid one or only were shown it."""
    changed = Event.objects.filter(user=OuterRef("user"), item=OuterRef("item"), at__gte=since, at__lte=until)
    seen = (
        Event.objects.filter(Exists(changed), user__in=learners, at__lte=until)
        .filter(at__gte=F("user__training_consented_at"))
        .values("user", "item")
        .annotate(
            done_at=Min("at"),
            changed_at=Max("at"),
            hidden=BoolOr(Q(type=Event.Type.HIDE)),
            weight=Max(RawSQL(WEIGHT, (), FloatField())),  # noqa: S611 - a constant of ours
        )
        .order_by("changed_at")
    )
    found = seen.iterator(chunk_size=100)
    while rows := list(islice(found, 100)):
        people = User.objects.in_bulk([row["user"] for row in rows])
        items = Item.objects.in_bulk([row["item"] for row in rows])
        for row in rows:
            user, item = people.get(row["user"]), items.get(row["item"])
            if user is None or item is None:  # gone meanwhile
                continue
            engagement = 0.0 if row["hidden"] else round(row["weight"] / LIKED_MOST, 2)
            yield Observation(
                id=uuid5(user.pk, str(item.pk)),
                learner_id=user.pk,
                task=Task.ENGAGEMENT,
                subject=Subject(item.subject),
                record={"content": _about(item), "user_profile": _profile(user), "expected_engagement": engagement},
                done_at=row["done_at"],
                changed_at=row["changed_at"],
            )


# --- what workers learn from ---

# What of an event speaks for the item, and how much. A hidden item speaks against itself.
WEIGHT = """CASE type WHEN 'click' THEN 1 WHEN 'save' THEN 2 WHEN 'like' THEN 3 WHEN 'complete' THEN 3
    WHEN 'dwell' THEN least(coalesce(seconds, 0) / 30, 3) ELSE 0 END"""
TAKEN_TO = "(type IN ('click', 'save', 'like', 'complete') OR (type = 'dwell' AND seconds >= 10))"
CAP, CAP_DAYS = 5, 7  # impressions in so many days, after which an item that was not taken to is left out
LEARNED_DAYS = 180


class Act(NamedTuple):
    """All that a learner did with an item. at: when they first took to it, None where they did not."""

    user: UUID
    item: str
    at: datetime | None
    weight: float
    completed: bool
    ended: bool
    tired: bool


def act_list(*, user_ids: list[UUID]) -> list[Act]:
    hidden = "bool_or(type = 'hide')"
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT user_id, item_id::text, CASE WHEN NOT {hidden} THEN min(at) FILTER (WHERE {TAKEN_TO}) END,
                max({WEIGHT})::float, bool_or(type = 'complete'), bool_or(type IN ('complete', 'hide')),
                count(*) FILTER (WHERE type = 'impression' AND at > now() - %s * interval '1 day') >= %s
                    AND NOT bool_or({TAKEN_TO})
            FROM feed_event WHERE user_id = ANY(%s) GROUP BY user_id, item_id
            """,  # noqa: S608 - constants of ours
            [CAP_DAYS, CAP, user_ids],
        )
        return [Act(*row) for row in cursor.fetchall()]


# A row of `COPY … (FORMAT binary)`: the number of its fields, and the length before each of them.
HISTORY_ROW: Any = [
    ("fields", ">i2"),
    *(("user_length", ">i4"), ("user", ">i4"), ("item_length", ">i4"), ("item", ">i4")),
    *(("at_length", ">i4"), ("at", ">f8"), ("weight_length", ">i4"), ("weight", ">f4")),
]
COPY_HEAD, COPY_TAIL = 19, 2  # bytes around the rows


def history_dump(*, item_ids: Sequence[str]) -> bytes:
    """Rows of `HISTORY_ROW`: which learner, numbered from 0, took to which of these items, when first and how much."""
    query = f"""
        COPY (
            WITH numbered AS (SELECT id::uuid, n FROM unnest(%s::text[]) WITH ORDINALITY AS t (id, n)),
            taken AS (
                SELECT user_id, item_id, min(at) AS at, max({WEIGHT}) AS weight FROM feed_event
                WHERE ({TAKEN_TO} OR type = 'hide') AND at > now() - %s * interval '1 day'
                GROUP BY user_id, item_id HAVING NOT bool_or(type = 'hide')
            ),
            people AS (SELECT user_id, row_number() OVER () - 1 AS n FROM (SELECT DISTINCT user_id FROM taken) AS d)
            SELECT people.n::int4, (numbered.n - 1)::int4, extract(epoch FROM at)::float8, weight::float4
            FROM taken JOIN people USING (user_id) JOIN numbered ON numbered.id = item_id
        ) TO STDOUT (FORMAT binary)
    """  # noqa: S608 - constants of ours
    with connection.cursor() as cursor, cursor.copy(query, [list(item_ids), LEARNED_DAYS]) as copy:
        return b"".join(bytes(part) for part in copy)[COPY_HEAD:-COPY_TAIL]


class ItemRow(NamedTuple):
    """An item for the ranker. shown: whether it may be in a feed. topics: as estimated where its author names none."""

    id: str
    title: str
    subject: str
    author: str
    language: str
    tags: list[str]
    level: str
    created_at: datetime
    embedding: Any
    educational: float
    quality: float
    trend: float
    impressions: int
    shown: bool
    topics: list[str]


def catalogue_rows() -> list[ItemRow]:
    """All items that models have read."""
    topics: dict[Any, list[str]] = defaultdict(list)
    for item, slug in Item.topics.through.objects.values_list("item_id", "topic__slug"):
        topics[item].append(slug)
    rows = (
        item_list()
        .exclude(enrichment=None)
        .prefetch_related(None)
        .order_by("created_at", "id")
        .values_list(
            "id",
            "title",
            "subject",
            "author",
            "language",
            "tags",
            "level_known",
            "created_at",
            "enrichment__embedding",
            "enrichment__educational",
            "enrichment__quality",
            Coalesce("trend__score", 0.0),
            Coalesce("trend__impressions", 0),
            "status",
            "enrichment__topics",
        )
    )
    return [ItemRow._make([str(r[0]), *r[1:-2], r[-2] == Status.PUBLISHED, topics[r[0]] or r[-1]]) for r in rows]


def topic_graph() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Names of topics by their slugs, and which comes before which."""
    topics = dict(Topic.objects.order_by("slug").values_list("slug", "name"))
    edges = Topic.prerequisites.through.objects.values_list("to_topic__slug", "from_topic__slug")
    return topics, list(edges)


def readers_with_profiles(*, user_ids: Sequence[Any]) -> QuerySet[Reader]:
    return Reader.objects.filter(user__in=user_ids, events_at__isnull=False).select_related("user")


def follows_of(*, user_ids: Sequence[Any]) -> dict[UUID, list[str]]:
    found: dict[UUID, list[str]] = defaultdict(list)
    for user, author in Follow.objects.filter(user__in=user_ids).values_list("user", "author"):
        found[user].append(author)
    return found


# --- items ---


def cold_candidates(*, user: User | None, filters: dict[str, Any], limit: int) -> list[Item]:
    """Enriched items that are published, but for those that the learner has ended or was often shown and left: the best
    by what is known of the items and of the learner's profile. Each has its parts as `part_…`.
    """
    from apps.feed.cold import with_parts  # the expressions alone fill a page

    items = item_list(status=Status.PUBLISHED, **filters).exclude(enrichment=None).defer("body", "text")
    if user is not None:
        items = items.exclude(id__in=[act.item for act in act_list(user_ids=[user.pk]) if act.ended or act.tired])
    return with_parts(items, user, weights_get(), limit)


def cards(*, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Of published items, by their ids. Each process reads a card anew after some seconds."""
    kept = caches["process"].get_many(ids)
    if missing := [item for item in ids if item not in kept]:
        read = {str(item.pk): item_card(item) for item in item_list(status=Status.PUBLISHED, id__in=missing)}
        caches["process"].set_many(read, CARD_S)
        kept |= read
    return kept


# --- follows ---


def follow_list(*, user: User) -> list[str]:
    return list(Follow.objects.filter(user=user).order_by("author").values_list("author", flat=True))


# --- rankers ---


def ranker_live() -> Ranker | None:
    return Ranker.objects.filter(live=True).first()


def ranker_get(*, digest: str) -> Ranker:
    ranker = Ranker.objects.filter(digest=digest).first()
    if ranker is None:
        raise NotFound
    return ranker


# --- export ---


def feed_export(user: User) -> dict[str, Any]:
    reader = reader_get(user=user)
    events = Event.objects.filter(user=user).values("at", "id", "item", "type", "seconds", "position", "propensity")
    rankings = Ranking.objects.filter(user=user).values("number", "origin", "made_at", "until", "paged_at", "entries")
    return {
        "educational_share": reader.educational_share,
        "follows": follow_list(user=user),
        "scores": {name: getattr(reader, name) for name in ("events_at", "requested_at", "scored_until", "ranker")},
        "events": paged(events, "at", "id"),
        "event_names": paged(EventKey.objects.filter(user=user).values("client_id", "at"), "client_id"),
        "rankings": paged(rankings, "number", size=5),
        "foreseen": paged(Foresight.objects.filter(user=user).values("adapter", "values", "made_at"), "made_at"),
        "weights": paged(Weights.objects.filter(user=user).values("id", "created_at", *PARTS), "created_at", "id"),
    }
