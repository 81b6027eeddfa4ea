"""Hybrid retrieval: words and meanings, each ranked by Postgres, joined by reciprocal rank fusion.

Of words: the sum of each stem's inverse document frequency times `ts_rank`, over all items that have any of the rarest
of them; `websearch_to_tsquery` would want all words and find nothing. Of meanings: the inner product of embeddings,
by HNSW that goes on until filters have let enough pass. Both work on any table of the same columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import connection, transaction

DEPTH = 100  # items of each ranking
K = 60  # of reciprocal rank fusion (Cormack et al., 2009)
STEMS = 8  # the rarest are looked for: common ones cost most and tell least
LENGTH = 1  # ts_rank's normalisation: by the logarithm of the length
SCAN = (  # goes on until a page is full, in large tables and behind rare filters too
    "SET LOCAL hnsw.iterative_scan = 'strict_order'; SET LOCAL hnsw.ef_search = 100; "
    "SET LOCAL hnsw.max_scan_tuples = 1000000; SET LOCAL hnsw.scan_mem_multiplier = 8"
)
TELLING = 0.1  # of the rarest stem's weight: stems that tell less are ranked by, but not looked for


@dataclass(frozen=True)
class Table:
    """Where to look. texts, vectors: what SQL has after FROM; new items have words before they have an embedding.
    words: a tsvector. embedding: a vector. condition: SQL, with its parameters."""

    texts: str = "content_item LEFT JOIN content_enrichment ON content_enrichment.item_id = content_item.id"
    vectors: str = "content_item JOIN content_enrichment ON content_enrichment.item_id = content_item.id"
    key: str = "content_item.id"
    words: str = "content_item.words"
    embedding: str = "content_enrichment.embedding"
    condition: str = "content_item.status = 'published'"
    parameters: Sequence[Any] = field(default=())


def stems_of(text: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT unnest(tsvector_to_array(to_tsvector('english', %s)))", [text])
        return [stem for (stem,) in cursor.fetchall()]


def literal(stem: str) -> str:
    """A stem as a tsquery of its own."""
    return "'" + stem.replace("\\", "\\\\").replace("'", "''") + "'"


def by_words(weights: dict[str, float], table: Table, depth: int = DEPTH) -> list[Any]:
    """Keys of the items that have any of the stems, the best first. weights: of each stem."""
    rarest = sorted(weights, key=lambda stem: -weights[stem])[:STEMS]
    if not rarest:
        return []
    wanted = [stem for stem in rarest if weights[stem] >= TELLING * weights[rarest[0]]]
    score = " + ".join(f"%s * ts_rank('{{0.1, 0.2, 0.4, 1.0}}', {table.words}, %s::tsquery, {LENGTH})" for _ in rarest)
    query = f"""
        SELECT {table.key} FROM {table.texts} WHERE {table.words} @@ %s::tsquery AND {table.condition}
        ORDER BY {score} DESC, {table.key} LIMIT %s
    """  # noqa: S608 - names of ours
    scored = [value for stem in rarest for value in (weights[stem], literal(stem))]
    with transaction.atomic():
        with connection.cursor() as cursor:  # the planner does not know what it costs to read all of the words
            cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL jit = off")
        return _keys(query, [" | ".join(map(literal, wanted)), *table.parameters, *scored, depth])


def by_meaning(vector: Sequence[float], table: Table, depth: int = DEPTH, least: float = -1.0) -> list[Any]:
    """Keys of the items whose embeddings are most alike, the likest first; none that is less alike than `least`."""
    query = f"""
        SELECT key FROM (
            SELECT {table.key} AS key, {table.embedding} <#> %s::vector AS away FROM {table.vectors}
            WHERE {table.condition} ORDER BY away LIMIT %s
        ) AS nearest WHERE away <= %s ORDER BY away
    """  # noqa: S608 - names of ours
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(SCAN)
        return _keys(query, [str(list(vector)), *table.parameters, depth, -least])


def fused(*rankings: Sequence[Any]) -> dict[Any, float]:
    """Of each key, 1 for what is first in all rankings; the best first."""
    scores: dict[Any, float] = {}
    for ranking in rankings:
        for place, key in enumerate(ranking):
            scores[key] = scores.get(key, 0.0) + (K + 1) / (K + 1 + place) / len(rankings)
    return dict(sorted(scores.items(), key=lambda pair: -pair[1]))


def _keys(query: str, parameters: Sequence[Any]) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return [key for (key,) in cursor.fetchall()]
