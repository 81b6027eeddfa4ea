import asyncio
import base64
import json
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import structlog
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from redis.exceptions import RedisError

from apps.common import redis
from apps.common.retention import delete_in_batches
from apps.common.streaming import release_connection
from apps.content.models import Item
from apps.jobs import streams
from apps.jobs.models import ACTIVE, Job, State
from apps.jobs.services import job_create
from apps.search import retrieval, selectors, words
from apps.search.models import Query, Word
from apps.search.selectors import Facts
from apps.users.models import User

logger = structlog.get_logger(__name__)

JOB_KIND = "understand"
PATIENCE_S = 0.4  # that a search waits for its query to be understood
READ_AT_ONCE = 8  # queries of one user; the others are answered by their words
DEADLINE = timedelta(seconds=10)
CACHED_S = 3600
LIKE = 0.2  # cosine, from which on an item may be what was meant
EDUCATIONAL, QUALITY, LEVEL, SUBJECT = 0.06, 0.04, 0.05, 0.1  # beside 1 for what is first by words and by meaning
LOGGED = 400  # characters of a query
FILTERS = {"subject": "subject", "kind": "kind", "language": "language"}


@dataclass(frozen=True)
class Understanding:
    vector: list[float]
    intent: str
    subject: str
    level: str
    adapter: str | None


@dataclass(frozen=True)
class Found:
    """text: as it was understood, mended where nobody wrote such a word. understanding: None where no worker answered
    in time, so that only words were looked for. order: ids and scores, the best first."""

    text: str
    understanding: Understanding | None
    order: list[tuple[UUID, float]]
    facts: list[Facts]
    stems: list[str]


def search(*, user: User, text: str, filters: dict[str, str]) -> Found:
    """All that is found, best first."""
    text = " ".join(text.split())
    mended = words.vocabulary().corrected(text)  # for words alone: what nobody published may be a right word
    asked = query_ask(user=user, text=text.lower())
    table = _table(filters)
    stems = words.idf(retrieval.stems_of(mended))
    rankings = [retrieval.by_words(stems, table)]  # while a worker reads the query
    understanding = query_understood(asked)
    if understanding is not None:
        rankings.append(retrieval.by_meaning(understanding.vector, table, least=LIKE))
    scores = retrieval.fused(*rankings)
    facts = selectors.facts_of(list(scores))
    level = (understanding and understanding.level) or user.level
    subject = understanding.subject if understanding is not None else ""
    ranked = [(one.id, scores[one.id] + _value(one, level, subject)) for one in facts.values()]
    ranked.sort(key=lambda pair: (-pair[1], pair[0]))
    return Found(mended, understanding, ranked, list(facts.values()), list(stems))


def _value(facts: Facts, level: str, subject: str) -> float:
    """For learning, of what is about as relevant."""
    return (
        EDUCATIONAL * (facts.educational or 0)
        + QUALITY * (facts.quality or 0)
        + LEVEL * (facts.level == level)
        + SUBJECT * (facts.subject == subject)
    )


def _table(filters: dict[str, str]) -> retrieval.Table:
    conditions, parameters = ["content_item.status = 'published'"], []
    for name, column in FILTERS.items():
        if name in filters:
            conditions.append(f"content_item.{column} = %s")
            parameters.append(filters[name])
    if "level" in filters:
        conditions.append("coalesce(nullif(content_item.level, ''), content_enrichment.level) = %s")
        parameters.append(filters["level"])
    return retrieval.Table(condition=" AND ".join(conditions), parameters=parameters)


@transaction.atomic
def query_log(*, user: User, found: Found) -> None:
    known = found.understanding
    understood = {"intent": known.intent, "subject": known.subject, "level": known.level} if known else {}
    Query.objects.create(user=user, text=found.text.lower()[:LOGGED], results=len(found.order), **understood)


# --- understanding ---


@dataclass(frozen=True)
class Asked:
    """A query that a worker is to understand, or of which is known how it was understood."""

    key: str
    known: dict[str, Any] | None
    job: Job | None
    waits_until: float


def query_ask(*, user: User, text: str) -> Asked:
    """Have a worker understand the query, unless it did before, or reads enough of this user."""
    key = _key(text)
    job = None
    if (known := _cached(key)) is None and _reading(user) < READ_AT_ONCE:
        job = job_create(kind=JOB_KIND, user=user, request={"text": text}, keep=False, deadline=DEADLINE)
    return Asked(key, known, job, time.monotonic() + PATIENCE_S)


def _reading(user: User) -> int:
    return Job.objects.filter(user=user, kind=JOB_KIND, state__in=ACTIVE).count()


def query_understood(asked: Asked) -> Understanding | None:
    """What a worker made of the query; None where none answers in time."""
    kept = asked.known
    if asked.job is not None:
        release_connection()
        ended = async_to_sync(_ended)(asked.job, asked.waits_until - time.monotonic())
        if ended is None or ended.state != State.SUCCEEDED or not ended.result:
            return None
        kept = ended.result
    if kept is None:
        return None
    packed = base64.b64decode(kept["vector"])
    vector = list(struct.unpack(f"<{len(packed) // 4}f", packed))
    return Understanding(vector, kept["intent"], kept["subject"], kept["level"], kept.get("adapter"))


async def _ended(job: Job, seconds: float) -> Job | None:
    try:
        return await asyncio.wait_for(streams.wait(job), max(seconds, 0.01))
    except TimeoutError:
        return None


def _key(text: str) -> str:
    return f"lyo:query:{sha256(text.encode()).hexdigest()}"


def understanding_keep(job: Job) -> dict[str, Any]:
    """When a query has been understood, for those who ask the same: also where nobody waited for it so long."""
    if job.state == State.SUCCEEDED:
        _cache(_key(job.request["text"]), job.result or {})
    return {}


def _cached(key: str) -> dict[str, Any] | None:
    text = redis.ask_cache(lambda cache: cache.get(key), otherwise=None)
    return json.loads(text) if text else None


def _cache(key: str, result: dict[str, Any]) -> None:
    redis.ask_cache(lambda cache: cache.set(key, json.dumps(result), ex=CACHED_S), otherwise=None)


# --- suggestions ---

FEW = 3  # suggestions, with fewer of which those of like meaning are added
MEANT = 0.4  # cosine


def suggest(*, user: User, text: str) -> list[str]:
    """What begins so, and, where that is little, what means the like."""
    text = " ".join(text.split())
    found = selectors.suggestions(text=text)
    if len(found) < FEW and (understanding := query_understood(query_ask(user=user, text=text.lower()))) is not None:
        ids = retrieval.by_meaning(understanding.vector, retrieval.Table(), depth=selectors.SUGGESTIONS, least=MEANT)
        titles = dict(Item.objects.filter(id__in=ids).values_list("id", "title"))
        found = list(dict.fromkeys([*found, *(titles[one] for one in ids if one in titles)]))
    return found[: selectors.SUGGESTIONS]


# --- words ---

WORDS_KEY = "lyo:words"
# Of each form, in how many items each word is. `ts_stat` runs the query that it is given.
COUNT = """
INSERT INTO search_word (word, form, documents)
SELECT word, 'written', ndoc FROM ts_stat($$
    SELECT to_tsvector('simple', title || ' ' || left(text, 100000)) FROM content_item WHERE status = 'published'
$$) WHERE length(word) <= 200
UNION ALL
SELECT word, 'stem', ndoc FROM ts_stat($$
    SELECT words FROM content_item WHERE status = 'published'
$$) WHERE length(word) <= 200
"""


@transaction.atomic
def words_count() -> int:
    """Count anew in how many published items each word is; returns how many words there are."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('words', 0))")
        Word.objects.all().delete()
        cursor.execute(COUNT)
        made = cursor.rowcount
    transaction.on_commit(words.forget)
    return made


def words_refresh() -> bool:
    """Count the words anew if what is published has changed since they were; returns whether it had."""
    version = selectors.content_version()
    try:
        if redis.cache().get(WORDS_KEY) == version and Word.objects.exists():
            return False
    except RedisError:
        logger.warning("words are counted anew each time: the cache server does not answer")
    words_count()
    with suppress(RedisError):
        redis.cache().set(WORDS_KEY, version)
    return True


def queries_forget() -> int:
    return delete_in_batches(selectors.query_list_old())
