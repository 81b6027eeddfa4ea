"""How well the feed foresees what people do next, beside well-known recommenders: what `manage.py feed_eval` runs.

`--train` and `--test` are CSV files with the columns user,item[,timestamp][,event][,value]. All that is learned is
learned from train; for each learner of test, all items of train that they have not done there are ranked. Events count
as in the feed: impressions not at all, a `dwell` by its `value` in seconds, and what was hidden as if never done;
those of other names, and rows without one, count 1.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from workers.scoring.feed.baselines import BASELINES, Scorer
from workers.scoring.feed.catalogue import Batch
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.model import FeedModel, blocks
from workers.scoring.files import BadFile, text_of

WEIGHTS = {"impression": 0.0, "hide": 0.0, "click": 1.0, "save": 2.0, "like": 3.0, "complete": 3.0}
DWELT_S, DWELL_S = 10.0, 30.0  # a shorter dwell is none; and how long one is that counts 1
TUNED_ON = 0.2  # of train, the last of each learner
Figures = dict[str, float]
Row = tuple[int, int, float, float]  # user, item, time, weight


def main() -> None:
    parser = argparse.ArgumentParser(prog="manage.py feed_eval", description=__doc__.partition("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="CSV: user,item[,timestamp][,event][,value]")
    parser.add_argument("--test", type=Path, required=True, help="the same, of what came after")
    parser.add_argument("--k", type=int, default=10, help="how many items are recommended")
    parser.add_argument("--json", type=Path, help="where the figures go as JSON")
    options = parser.parse_args()
    if options.k < 1:
        parser.error("--k must be at least 1")
    try:
        figures = evaluated(*read(options.train, options.test), options.k)
    except (BadFile, OSError) as error:
        sys.exit(str(error))
    print(table(figures, options.k))
    if options.json:
        baselines = {name: found for name, found in figures.items() if name != "lyo"}
        options.json.write_text(json.dumps({"lyo": figures["lyo"], "baselines": baselines}, indent=2))


def evaluated(before: Interactions, after: Interactions, k: int) -> dict[str, Figures]:
    """Of Lyo and of each baseline."""
    print("lyo is learning", file=sys.stderr)
    model = FeedModel.fit(before)
    figures = compared({"lyo": model}, before, after, k)
    for name in BASELINES:
        print(f"{name} is learning", file=sys.stderr)
        best = tuned(name, before)
        figures[name] = measured(partial(_recommended, best, before, k), before, after, k)
    return figures


def _recommended(scorer: Scorer, past: Interactions, k: int, history: Interactions) -> np.ndarray:
    """Who has done nothing yet gets what is popular, of whatever recommender."""
    scores = scorer(history)
    scores[np.diff(history.starts) == 0] = np.bincount(past.items, minlength=past.shape[1])
    return top(scores, history, k)


def compared(
    models: Mapping[str, FeedModel], before: Interactions, after: Interactions, k: int = 10
) -> dict[str, Figures]:
    """Of each model, which was fit on `before`."""
    return {
        name: measured(lambda history, model=model: model.ranked(Batch(history), k), before, after, k)
        for name, model in models.items()
    }


def tuned(name: str, past: Interactions) -> Scorer:
    """The baseline with the parameters that foresee the end of `past` best, learned from all of it."""
    held = past.last_share(TUNED_ON)
    if not held.any():  # nobody did two things
        return next(iter(BASELINES[name](past)))
    before, after = past.keep(~held), past.keep(held)
    found = [
        measured(partial(_recommended, scorer, before, 10), before, after, 10)["ndcg"]
        for scorer in BASELINES[name](before)
    ]
    best = int(np.argmax(found))
    return next(scorer for place, scorer in enumerate(BASELINES[name](past)) if place == best)


def top(scores: np.ndarray, history: Interactions, k: int) -> np.ndarray:
    """[learners, k]: the best of what each has not done."""
    scores[history.matrix.nonzero()] = -np.inf
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
    return np.take_along_axis(best, order, 1)


def measured(recommend: Any, before: Interactions, after: Interactions, k: int) -> Figures:
    """recommend(history) gives [learners, k] of items. Means over the learners who did something new in `after`."""
    gain = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(gain)
    ndcg, recall, hits, seen = [], [], [], set()
    known = before.matrix
    for users in blocks(np.flatnonzero(np.diff(after.starts))):
        new = after.matrix[users] - after.matrix[users].multiply(known[users])
        new.eliminate_zeros()
        wanted = np.asarray(new.sum(1)).ravel()
        chosen = recommend(before.of_users(users))[:, :k]
        hit = np.asarray(new[np.arange(len(users))[:, None], np.maximum(chosen, 0)].todense()) * (chosen >= 0)
        some = wanted > 0
        ndcg.append(((hit * gain[: hit.shape[1]]).sum(1)[some]) / ideal[np.minimum(wanted[some], k).astype(int) - 1])
        recall.append(hit.sum(1)[some] / wanted[some])
        hits.append(hit.any(1)[some])
        seen |= set(chosen[chosen >= 0].tolist())
    if not ndcg or not sum(map(len, ndcg)):
        raise BadFile("no learner of the test did anything that is new to them")
    return {
        "ndcg": round(float(np.concatenate(ndcg).mean()), 4),
        "recall": round(float(np.concatenate(recall).mean()), 4),
        "hit_rate": round(float(np.concatenate(hits).mean()), 4),
        "coverage": round(len(seen) / max(1, int((np.bincount(before.items, minlength=1) > 0).sum())), 4),
    }


def table(figures: Mapping[str, Figures], k: int) -> str:
    lines = [f"{'':12}{f'NDCG@{k}':>10}{f'recall@{k}':>11}{'hit rate':>10}{'coverage':>10}"]
    lines += [
        f"{name:12}{found['ndcg']:10.4f}{found['recall']:11.4f}{found['hit_rate']:10.4f}{found['coverage']:10.4f}"
        for name, found in figures.items()
    ]
    best = max((name for name in figures if name != "lyo"), key=lambda name: figures[name]["ndcg"])
    ratio = figures["lyo"]["ndcg"] / max(figures[best]["ndcg"], 1e-9)
    return "\n".join([*lines, f"NDCG of lyo to the best baseline, {best}: {ratio:.2f}"])


# --- files ---


def read(train: Path, test: Path) -> tuple[Interactions, Interactions]:
    """Learners and items are numbered as they appear in train, then in test."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    parts = [_rows(path, users, items) for path in (train, test)]
    shape = (len(users), len(items))
    before, after = (_interactions(rows, shape) for rows in parts)
    return before, after


def _interactions(rows: list[Row], shape: tuple[int, int]) -> Interactions:
    users, chosen, times, weights = map(np.array, zip(*rows, strict=True))
    return Interactions.of(users, chosen, times, weights, shape)


def _rows(path: Path, users: dict[str, int], items: dict[str, int]) -> list[Row]:
    found: list[Row] = []
    hidden: set[tuple[int, int]] = set()
    try:
        for line, row in _records(path):
            pair = users.setdefault(row["user"], len(users)), items.setdefault(row["item"], len(items))
            if row.get("event") == "hide":
                hidden.add(pair)
            elif weight := _weight(path, line, row):
                time = _number(path, line, row, "timestamp") if row.get("timestamp") else float(line)
                found.append((*pair, time, weight))
    except csv.Error as error:
        raise BadFile(f"{path}: {error}") from None
    found = [row for row in found if row[:2] not in hidden]
    if not found:
        raise BadFile(f"{path}: there are no rows of what anybody took to")
    return found


def _records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines by their numbers."""
    text = text_of(path)
    readers = (csv.DictReader(StringIO(text, newline=""), delimiter=delimiter) for delimiter in ",;\t")
    reader = next((reader for reader in readers if {"user", "item"} <= set(reader.fieldnames or ())), None)
    if reader is None:
        raise BadFile(f"{path}: there are no columns 'user' and 'item' (of user,item[,timestamp][,event][,value])")
    for row in reader:
        if not row["user"] or not row["item"]:
            raise BadFile(f"{path}, line {reader.line_num}: user and item must not be empty")
        yield reader.line_num, row


def _weight(path: Path, line: int, row: dict[str, str]) -> float:
    if row.get("event") != "dwell":
        return WEIGHTS.get(row.get("event") or "", 1.0)
    seconds = _number(path, line, row, "value") if row.get("value") else 0.0
    return min(seconds / DWELL_S, 3.0) if seconds >= DWELT_S else 0.0


def _number(path: Path, line: int, row: dict[str, str], name: str) -> float:
    with suppress(ValueError):
        if math.isfinite(value := float(row[name])):
            return value
    raise BadFile(f"{path}, line {line}: {name} {row[name]!r} is no number")


if __name__ == "__main__":
    main()
