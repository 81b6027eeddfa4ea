"""How well search finds what people judged to fit, beside BM25. Files are as BEIR has them (Thakur et al., 2021)."""

import csv
import json
import math
import subprocess
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from django.db import connection, transaction

from apps.common.sheets import BadSheet, decoded
from apps.search import retrieval, words

NDCG_AT, RECALL_AT = 10, 100
BATCH = 1000  # documents, with their vectors as text
Judged = dict[str, dict[str, int]]
Vector = Sequence[float]
TABLE = retrieval.Table("eval_doc", "eval_doc", "place", "words", "embedding", "true")


class BadFile(ValueError):
    """What is wrong with a file, by line, for those who made it."""


def evaluated(docs: Path, queries: Path, qrels: Path) -> dict[str, dict[str, float]]:
    """NDCG@10 and recall@100 of search and of BM25, over the queries for which anything is judged to fit."""
    documents = texts_of(docs)
    judged = judgements_of(qrels)
    asked = {
        key: text for key, text in texts_of(queries).items() if any(gain > 0 for gain in judged.get(key, {}).values())
    }
    if not asked:
        raise BadFile(f"{qrels}: nothing is judged to fit any of the queries")
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.json").write_text(
            json.dumps({"docs": list(documents.values()), "queries": list(asked.values())})
        )
        program = [sys.executable, "-m", "workers.scoring.peers", str(folder / "texts.json"), name]
        subprocess.run(program, check=True)  # noqa: S603 - a list, no shell
        doc_vectors, query_vectors = (vectors_of(folder / f"{part}.f32", n) for part, n in _sizes(documents, asked))
        bm25 = json.loads((folder / "bm25.json").read_text())
    keys = list(documents)
    ours = search_all(list(documents.values()), doc_vectors, list(asked.values()), query_vectors)
    return {
        name: measured([[keys[place] for place in ranking] for ranking in rankings], list(asked), judged)
        for name, rankings in (("lyo", ours), ("bm25", bm25))
    }


def _sizes(documents: dict[str, str], asked: dict[str, str]) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("docs", len(documents)), ("queries", len(asked))


@transaction.atomic
def search_all(
    documents: list[str], doc_vectors: list[Vector], queries: list[str], query_vectors: list[Vector]
) -> list[list[int]]:
    """For each query the places of documents, by the queries that search itself runs, over a table of its own."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE eval_doc (place int PRIMARY KEY, words tsvector, embedding vector(384)) "
            "ON COMMIT DROP"
        )
        rows = zip(range(len(documents)), documents, doc_vectors, strict=True)
        while batch := list(islice(rows, BATCH)):
            cursor.executemany(
                "INSERT INTO eval_doc VALUES (%s, to_tsvector('english', %s), %s)",
                [(place, text[:100_000].replace("\0", " "), str(list(vector))) for place, text, vector in batch],
            )
        cursor.execute("CREATE INDEX ON eval_doc USING gin (words)")
        cursor.execute("CREATE INDEX ON eval_doc USING hnsw (embedding vector_ip_ops)")
        cursor.execute("SELECT word, ndoc FROM ts_stat('SELECT words FROM eval_doc')")
        frequency = dict(cursor.fetchall())
    found = []
    for query, vector in zip(queries, query_vectors, strict=True):
        stems = [stem for stem in retrieval.stems_of(query.replace("\0", " ")) if stem in frequency]
        weights = {stem: words.inverse_frequency(frequency[stem], len(documents)) for stem in stems}
        both = retrieval.by_words(weights, TABLE), retrieval.by_meaning(vector, TABLE)
        found.append(list(retrieval.fused(*both)))
    return found


def measured(rankings: list[list[str]], queries: list[str], judged: Judged) -> dict[str, float]:
    ndcg, recall = [], []
    for key, ranking in zip(queries, rankings, strict=True):
        gains = {doc: gain for doc, gain in judged[key].items() if gain > 0}
        ideal = _dcg(sorted(gains.values(), reverse=True)[:NDCG_AT])
        ndcg.append(_dcg([gains.get(doc, 0) for doc in ranking[:NDCG_AT]]) / ideal)
        recall.append(len(gains.keys() & set(ranking[:RECALL_AT])) / len(gains))
    return {"ndcg": round(sum(ndcg) / len(ndcg), 4), "recall": round(sum(recall) / len(recall), 4)}


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))


# --- files ---


def texts_of(path: Path) -> dict[str, str]:
    """Of lines {"_id" or "id", "text", "title" or not}."""
    found: dict[str, str] = {}
    with path.open("rb") as file:
        for number, line in enumerate(_lines(path, file), 1):
            if not line.strip():
                continue
            try:
                record: Any = json.loads(line)
            except ValueError:
                raise BadFile(f"{path}, line {number} is not JSON") from None
            key = record.get("_id", record.get("id")) if isinstance(record, dict) else None
            if key is None or not isinstance(record.get("text"), str):
                raise BadFile(f'{path}, line {number}: expected {{"_id": "...", "text": "..."}}')
            found[str(key)] = f"{record.get('title') or ''}\n{record['text']}".strip()
    if not found:
        raise BadFile(f"{path}: there are no lines")
    return found


def _lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    try:
        yield from decoded(file.read()).split("\n")
    except BadSheet as error:
        raise BadFile(f"{path}, {error}") from error


def judgements_of(path: Path) -> Judged:
    """Of tab-separated lines query, document, gain, or as TREC has them with a column between the first two."""
    judged: Judged = defaultdict(dict)
    with path.open("rb") as file:
        for number, raw in enumerate(csv.reader(_lines(path, file), delimiter="\t"), 1):
            row = raw if len(raw) > 1 else " ".join(raw).split()
            if not row:
                continue
            try:
                query, document, gain = row if len(row) == 3 else (row[0], row[2], row[3])
                judged[query][document] = int(float(gain))
            except (ValueError, IndexError):
                if number == 1:
                    continue  # the names of the columns
                raise BadFile(f"{path}, line {number}: expected query, document and gain") from None
    return judged


def vectors_of(path: Path, count: int) -> list[Vector]:
    data = array("f")
    data.frombytes(path.read_bytes())
    size = len(data) // max(1, count)
    return [data[start : start + size] for start in range(0, len(data), size)]
