from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from django.core.cache import caches
from django.core.files.base import ContentFile
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from redis.exceptions import RedisError
from rest_framework.exceptions import NotFound

from apps.common import redis
from apps.common.constants import Task
from apps.common.errors import Gone
from apps.common.retention import delete_in_batches
from apps.content.selectors import item_list
from apps.feed import selectors
from apps.feed.cold import entry_of
from apps.feed.entries import Entry
from apps.feed.mix import mixed
from apps.feed.models import SHARE, Event, EventKey, Follow, Foresight, Ranker, Ranking, Reader
from apps.inference.selectors import adapter_live
from apps.jobs.models import ACTIVE, Job
from apps.jobs.services import job_create, job_forget
from apps.users.models import User
from apps.users.services import users_establish
from lyo import env

Fields = dict[str, Any]
logger = structlog.get_logger(__name__)

SCORE_KIND, FORESEE_KIND, FIT_KIND = "score_feed", "foresee_feed", "fit_feed"
LIST = 160  # entries of a ranking
KEPT, PAGED = 3, 20  # the newest rankings of a learner that are kept, and the most of those whose pages were asked for
LEARNERS = 64  # of one scoring job
SHARDS = 16  # scoring jobs at a time: the rest waits where it does not take a tutor's turn
FORESEERS = 4  # jobs that foresee at a time, for they share workers with the tutor
FORESEEN_OF = 2000  # learners of each
NOTED_S = 600  # so long a process remembers that a ranking is paged through
PATIENCE = timedelta(seconds=60)  # before a worker is asked again for the same

# --- events ---


@transaction.atomic
def events_record(*, user: User, events: Sequence[dict[str, Any]]) -> int:
    """Keep events, each with `item` and `type`; returns how many of them are new: a `client_id` counts once."""
    now = timezone.now()
    named = {event["client_id"] for event in events if event.get("client_id")}
    keys = [EventKey(user=user, client_id=name, at=now) for name in sorted(named)]
    known = set(EventKey.objects.filter(user=user, client_id__in=named).values_list("client_id", flat=True))
    new = _new_keys(user, [key for key in keys if key.client_id not in known])
    kept: list[Event] = []
    propensities = _propensities(user) if any(event["type"] == Event.Type.IMPRESSION for event in events) else {}
    for event in events:
        name = event.get("client_id")
        if name and name not in new:
            continue
        new.discard(name)
        shown = event["type"] == Event.Type.IMPRESSION
        kept.append(
            Event(
                at=now,
                user=user,
                item=event["item"],
                type=event["type"],
                seconds=event.get("seconds"),
                position=event.get("position"),
                propensity=propensities.get(str(event["item"].pk)) if shown else None,
            )
        )
    Event.objects.bulk_create(kept, batch_size=500)
    if any(event.type != Event.Type.IMPRESSION for event in kept):
        _reader_touch(user)
    return len(kept)


def _reader_touch(user: User) -> None:
    """Have the learner scored again. The clock is read once the row is ours: later events have a later time."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO feed_reader (user_id, educational_share, events_at, ranker, profile, number) "
            "VALUES (%s, %s, clock_timestamp(), '', '', 0) "
            "ON CONFLICT (user_id) DO UPDATE SET events_at = clock_timestamp()",
            [user.pk, SHARE],
        )


def _new_keys(user: User, keys: list[EventKey]) -> set[str | None]:
    """Those that nobody else has kept at the same time."""
    if not keys:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO feed_eventkey (user_id, client_id, at) SELECT %s, unnest(%s::text[]), %s "
            "ON CONFLICT DO NOTHING RETURNING client_id",
            [user.pk, [key.client_id for key in keys], keys[0].at],
        )
        return {name for (name,) in cursor.fetchall()}


def _propensities(user: User) -> dict[str, float]:
    """Of the learner's newest ranking; what is not in it was shown by some other way, of which nothing is known."""
    reader = selectors.reader_get(user=user)
    ranking = selectors.ranking_get(user=user, number=reader.number) if reader.number else None
    return {entry["item"]: entry["propensity"] for entry in ranking.entries} if ranking else {}


def partitions_ensure(*, months: int = 6) -> list[str]:
    """Make the tables of this month's events and of the next ones'; returns the names of the new ones.

    Events that came before their table did are taken there from the table of the rest."""
    made: list[str] = []
    first = timezone.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    with connection.cursor() as cursor:
        for _ in range(months):
            end = (first + timedelta(days=32)).replace(day=1)
            name = f"feed_event_{first:%Y_%m}"
            cursor.execute("SELECT to_regclass(%s)", [name])
            if cursor.fetchone() == (None,):
                with transaction.atomic():
                    cursor.execute(f"CREATE TABLE {name} (LIKE feed_event INCLUDING ALL)")
                    late = "DELETE FROM feed_event_rest WHERE at >= %s AND at < %s RETURNING *"
                    cursor.execute(f"WITH late AS ({late}) INSERT INTO {name} SELECT * FROM late", [first, end])  # noqa: S608
                    cursor.execute(
                        f"ALTER TABLE feed_event ATTACH PARTITION {name} FOR VALUES FROM (%s) TO (%s)", [first, end]
                    )
                made.append(name)
            first = end
    return made


def keys_forget() -> int:
    """Forget the names of events that no client sends again."""
    return delete_in_batches(EventKey.objects.filter(at__lt=timezone.now() - timedelta(days=env.EVENT_KEY_DAYS)))


def events_forget() -> int:
    """Delete what learners did long ago."""
    return delete_in_batches(Event.objects.filter(at__lt=timezone.now() - timedelta(days=env.EVENT_DAYS)))


def rankings_forget() -> int:
    """Delete the feeds, and what was foreseen, of learners who no longer come: they get a new one when they do."""
    made = Q(made_at__lt=timezone.now() - timedelta(days=env.RANKING_DAYS))
    return delete_in_batches(Ranking.objects.filter(made)) + delete_in_batches(Foresight.objects.filter(made))


def learner_erase(user: User) -> None:
    """Take away what a learner did, and their name from scoring jobs; the rest goes with their row."""
    Reader.objects.filter(user=user).delete()  # first: whoever asks for scores holds it until their job is there
    job_forget(user_id=user.pk)
    delete_in_batches(Event.objects.filter(user=user))
    delete_in_batches(EventKey.objects.filter(user=user))
    user_id = user.pk
    transaction.on_commit(lambda: _uncache([user_id]))


def feeds_uncache() -> int:
    """Delete the cached feeds of learners who are gone: the cache server may have been away when they left."""
    gone = 0
    with suppress(RedisError):
        keys = redis.cache().scan_iter(f"{selectors.CACHE}*", count=1000)
        while batch := list(islice(keys, 500)):
            ids = {UUID(key.rpartition(":")[2]) for key in batch}
            there = set(User.objects.filter(pk__in=ids).values_list("pk", flat=True))
            left = ids - there - {selectors.EVERYBODY}
            _uncache(left)
            gone += len(left)
    return gone


# --- the reader's wishes ---


@transaction.atomic
def reader_update(*, user: User, educational_share: float) -> Reader:
    return Reader.objects.update_or_create(user=user, defaults={"educational_share": educational_share})[0]


@transaction.atomic
def author_follow(*, user: User, author: str) -> None:
    _, is_new = Follow.objects.get_or_create(user=user, author=author)
    if is_new:
        _rescore(user)


@transaction.atomic
def author_unfollow(*, user: User, author: str) -> None:
    gone, _ = Follow.objects.filter(user=user, author=author).delete()
    if gone:
        _rescore(user)


def _rescore(user: User) -> None:
    """By a worker; for who has done nothing yet, when the feed is asked for next."""
    readers = Reader.objects.filter(user=user)
    if readers.exclude(events_at=None).exists():
        _reader_touch(user)
    else:
        readers.update(profile="")


# --- rankings ---


@transaction.atomic
def ranking_store(
    *,
    user: User,
    entries: Iterable[Entry],
    origin: str,
    until: datetime,
    profile: str,
    ranker: str = "",
    after: int | None = None,
) -> Ranking | None:
    """Make it the learner's newest; None where another was faster, which knows later events, or which is not the one
    of the number `after`."""
    Reader.objects.get_or_create(user=user)
    reader = Reader.objects.select_for_update().get(user=user)
    if reader.scored_until is not None and reader.scored_until > until:
        return None
    if after is not None and reader.number != after:
        return None
    reader.number += 1
    reader.profile, reader.ranker = profile, ranker
    if origin == Ranking.Origin.SCORED:
        reader.scored_until = until
    reader.save(update_fields=["number", "profile", "ranker", "scored_until"])
    ranking = Ranking.objects.create(
        user=user, number=reader.number, origin=origin, until=until, entries=[entry.dump() for entry in entries]
    )
    _rankings_forget(Ranking.objects.filter(user=user), newest=reader.number)
    transaction.on_commit(lambda: selectors.ranking_cache(ranking))
    return ranking


def _rankings_forget(rankings: QuerySet[Ranking], *, newest: int) -> None:
    """But for the newest, and those whose pages are still asked for."""
    paged = rankings.filter(paged_at__gt=timezone.now() - selectors.PAGED_FOR).order_by("-number")[:PAGED]
    kept = list(paged.values_list("pk", flat=True))
    rankings.filter(number__lte=newest - KEPT).exclude(pk__in=kept).delete()


def _ranking_paged(user: User | None, ranking: Ranking) -> None:
    """Note that pages of it are asked for; each process does so once in some minutes."""
    if caches["process"].add(f"feed.paged.{user and user.pk}.{ranking.number}", True, NOTED_S):
        Ranking.objects.filter(user=user, number=ranking.number).update(paged_at=timezone.now())


def _uncache(user_ids: Collection[UUID]) -> None:
    keys = [key for user_id in user_ids for key in (selectors.cache_key(user_id), selectors.rest_key(user_id))]
    if keys:
        with suppress(RedisError):  # `feeds_uncache` finds it
            redis.cache().delete(*keys)


def ranking_cold(*, user: User | None, filters: dict[str, Any] | None = None) -> list[Entry]:
    """Of what is known without a worker."""
    items = selectors.cold_candidates(user=user, filters=filters or {}, limit=LIST)
    return [entry_of(item, user) for item in items]


@transaction.atomic
def ranking_general() -> Ranking:
    """The one for everybody: kept for some minutes, the same for all who ask meanwhile."""
    if ranking := selectors.ranking_general():
        return ranking
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('feed for everybody', 0))")
    if ranking := selectors.ranking_general():
        return ranking
    last = Ranking.objects.filter(user=None).order_by("-number").first()
    number = last.number + 1 if last else 1
    _rankings_forget(Ranking.objects.filter(user=None), newest=number)
    entries = [entry.dump() for entry in ranking_cold(user=None)]
    return Ranking.objects.create(
        user=None, number=number, origin=Ranking.Origin.GENERAL, entries=entries, until=timezone.now()
    )


# --- the feed ---


class Page(NamedTuple):
    """entries: those of the page, each with its item's card. following: the place after it, None at the end. share: of
    it that teaches. state: see `selectors.ranking_state`."""

    entries: list[tuple[Entry, Fields]]
    number: int
    following: int | None
    share: float
    state: str


def feed_page(
    *,
    user: User,
    profiled: bool,
    share: float | None,
    filters: dict[str, Any],
    size: int,
    number: int | None = None,
    start: int = 0,
) -> Page:
    """A page of the learner's feed, or of everybody's; `number` and `start` go on where a page ended. Raises `Gone`
    where its ranking is no longer there."""
    reader = selectors.reader_get(user=user) if profiled else None
    ranking = _ranking(user, reader, number)
    state = selectors.ranking_state(reader=reader, ranking=ranking) if reader else "general"
    wanted = share if share is not None else reader.educational_share if reader else SHARE
    entries = selectors.entries_of(ranking)
    if filters:
        entries = _filtered(ranking, entries, user if profiled else None, filters)
    ended = selectors.ended_since(reader=reader, ranking=ranking) if reader else set()
    order = islice(enumerate(mixed(entries, selectors.weights_get(), wanted)), start, None)
    page: list[tuple[Entry, Fields]] = []
    following: int | None = start
    while len(page) < size and following is not None:
        taken = list(islice(order, size - len(page)))
        cards = selectors.cards(ids=[entry.item for _, entry in taken if entry.item not in ended])
        page += [(entry, cards[entry.item]) for _, entry in taken if entry.item in cards]
        following = taken[-1][0] + 1 if taken else None
    if next(order, None) is None:
        following = None
    else:
        _ranking_paged(user if profiled else None, ranking)
    return Page(page, ranking.number, following, wanted, state)


def _ranking(user: User, reader: Reader | None, number: int | None) -> Ranking:
    if number is not None:  # the pages of a ranking go on, whatever has come since
        kept = selectors.ranking_get(user=user if reader else None, number=number)
        if kept is None:
            raise Gone("This feed is too old to go on with: begin anew, without a cursor.", code="cursor_expired")
        return kept
    if reader is None:
        return ranking_general()
    profile = selectors.profile_digest(user)
    if reader.number and reader.profile != profile and reader.events_at is not None:
        _reader_touch(user)  # workers come to know the new profile; until then
        Reader.objects.filter(user=user).update(profile=profile)
    known = reader.number and (reader.profile == profile or reader.events_at is not None)
    now = timezone.now()
    kept = selectors.ranking_get(user=user, number=reader.number) if known else None
    if kept and (kept.origin != Ranking.Origin.COLD or (kept.entries and kept.made_at > now - selectors.COLD_AGE)):
        return kept
    entries = ranking_cold(user=user)
    made = ranking_store(
        user=user, entries=entries, origin=Ranking.Origin.COLD, until=now, profile=profile, after=reader.number
    )
    reader.refresh_from_db()
    ranking = made or selectors.ranking_get(user=user, number=reader.number)
    if ranking is None:
        raise NotFound
    return ranking


def _filtered(ranking: Ranking, entries: list[Entry], user: User | None, filters: dict[str, Any]) -> list[Entry]:
    """What passes, filled up with what the ranking does not have."""
    passing = set(map(str, item_list(id__in=[e.item for e in entries], **filters).values_list("id", flat=True)))
    known = {entry.item for entry in entries}
    rest = selectors.rest_of(ranking=ranking, filters=filters, make=lambda: ranking_cold(user=user, filters=filters))
    return [entry for entry in entries if entry.item in passing] + [e for e in rest if e.item not in known]


def entry_get(*, user: User, item_id: UUID) -> tuple[Entry, dict[str, float]]:
    """What speaks for an item, as the newest of the learner's rankings that has it says, or as is known without one;
    and the weights. Raises `NotFound` for what no feed of theirs has."""
    rankings = Ranking.objects.filter(user=user).order_by("-number").iterator(chunk_size=1)
    entries = (Entry(**entry) for ranking in rankings for entry in ranking.entries if entry["item"] == str(item_id))
    found = next(entries, None)
    if found is None:
        found = next(iter(ranking_cold(user=user, filters={"id": item_id})), None)
    if found is None:
        raise NotFound
    return found, selectors.weights_get()


# --- scoring ---


@transaction.atomic
def scores_request() -> list[Job]:
    """Ask workers to score for those who have done something new, many at a time; returns the jobs."""
    now = timezone.now()
    live = selectors.ranker_live()
    due = selectors.reader_list_due(now=now, ranker=live.digest if live else "", patience=PATIENCE)
    rows = due.select_for_update(skip_locked=True).values_list("user", flat=True)
    room = SHARDS - Job.objects.filter(kind=SCORE_KIND, state__in=ACTIVE).count()
    users = list(rows[: LEARNERS * max(room, 0)])
    Reader.objects.filter(user__in=users).update(requested_at=now)
    shards = [users[start : start + LEARNERS] for start in range(0, len(users), LEARNERS)]
    return [job_create(kind=SCORE_KIND, request={"users": [str(user) for user in shard]}) for shard in shards]


# --- foresight ---


@transaction.atomic
def foresights_request() -> list[Job]:
    """Have the live adapter for engagement say what active learners will take to, those who were here last first.

    All jobs end in `LYO_FORESIGHT_S` from now. None are made where there is no such adapter, or where some are left.
    """
    adapter = adapter_live(task=Task.ENGAGEMENT)
    if adapter is None or not env.FORESIGHT_S:
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('foresight', 0))")
    if Job.objects.filter(kind=FORESEE_KIND, state__in=ACTIVE).exists():
        return []
    now = timezone.now()
    readers = selectors.reader_list_unforeseen(now=now, adapter=adapter.name).select_for_update(skip_locked=True)
    users = [str(user) for user in readers.values_list("user", flat=True)[: FORESEERS * FORESEEN_OF]]
    request = {"adapter": adapter.name, "until": (now + timedelta(seconds=env.FORESIGHT_S)).isoformat()}
    shares = [users[start::FORESEERS] for start in range(min(FORESEERS, len(users)))]
    return [job_create(kind=FORESEE_KIND, request={**request, "users": share}) for share in shares]


def foresight_store(*, user_id: UUID, adapter: str, values: dict[str, float]) -> None:
    """Keep what was foreseen for a learner, in place of what was; the scores to come know it."""
    kept = {"adapter": adapter, "values": values, "made_at": timezone.now()}
    Foresight.objects.update_or_create(user_id=user_id, defaults=kept)


# --- trends ---

MANY, MOST = 3, 7  # learners, of fewer than whom nothing is a trend; and what one of them counts at most
TREND_DAYS = 14
TRENDS = """
WITH done AS (
    SELECT item_id, user_id,
           sum(CASE type WHEN 'click' THEN 1 WHEN 'like' THEN 3 WHEN 'save' THEN 3 WHEN 'complete' THEN 3
                         WHEN 'dwell' THEN least(coalesce(seconds, 0) / 60, 2) WHEN 'hide' THEN -3 ELSE 0 END
               * 0.5 ^ (extract(epoch FROM now() - at) / (3 * 86400))) AS sum,
           count(*) FILTER (WHERE type = 'impression') AS impressions
    FROM feed_event WHERE at > now() - %(days)s * interval '1 day' GROUP BY item_id, user_id
), counted AS (
    SELECT item_id, sum(impressions) AS impressions,
           CASE WHEN count(*) FILTER (WHERE sum > 0 AND counts) < %(many)s THEN 0
                ELSE greatest(sum(least(sum, %(most)s)) FILTER (WHERE counts), 0) END AS sum
    FROM done JOIN (SELECT id, established_at IS NOT NULL AS counts FROM users_user) AS learner ON learner.id = user_id
    GROUP BY item_id
), best AS (SELECT greatest(max(ln(1 + sum)), 1) AS most FROM counted)
INSERT INTO feed_trend (item_id, score, impressions)
SELECT item_id, ln(1 + sum) / most, impressions FROM counted, best
ON CONFLICT (item_id) DO UPDATE SET score = excluded.score, impressions = excluded.impressions
"""


@transaction.atomic
def trends_count() -> None:
    """Count anew what learners of some standing take to; what nobody did anything with for two weeks has no trend."""
    lately = Q(reader__events_at__gt=timezone.now() - timedelta(days=TREND_DAYS))
    last = env.SIGNAL_ACCOUNT_EVENTS
    users_establish(active=lately & Exists(Event.objects.filter(user=OuterRef("pk"))[last - 1 : last]))
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM feed_trend t WHERE NOT EXISTS "
            "(SELECT 1 FROM feed_event e WHERE e.item_id = t.item_id AND e.at > now() - %s * interval '1 day')",
            [TREND_DAYS],
        )
        cursor.execute(TRENDS, {"many": MANY, "most": MOST, "days": TREND_DAYS})


# --- rankers ---

NEW_EVENTS = 1000  # after which a ranker is learned anew


@transaction.atomic
def ranker_request(*, minimum: int = NEW_EVENTS) -> Job | None:
    """Have a worker learn a ranker, where there is enough that is new and none is at it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('ranker', 0))")
    if Job.objects.filter(kind=FIT_KIND, state__in=ACTIVE).exists():
        return None
    last = Ranker.objects.first()
    events = Event.objects.exclude(type=Event.Type.IMPRESSION)
    if last is not None:
        events = events.filter(at__gt=last.created_at)
    if events[:minimum].count() < minimum:
        return None
    return job_create(kind=FIT_KIND, request={})


@transaction.atomic
def ranker_record(
    *, data: bytes, digest: str, figures: dict[str, Any], events: int, verdict: str, goes_live: bool
) -> Ranker:
    """Keep a ranker that a worker has learned."""
    ranker = Ranker(digest=digest, figures=figures, events=events, verdict=verdict)
    ranker.file.save(f"{digest}.safetensors", ContentFile(data), save=False)
    ranker.save()
    if goes_live:
        ranker_promote(ranker=ranker)
    return ranker


@transaction.atomic
def ranker_promote(*, ranker: Ranker) -> None:
    """Make it the one that scores; all are scored anew by it."""
    Ranker.objects.filter(live=True).update(live=False)
    Ranker.objects.filter(pk=ranker.pk).update(live=True)
