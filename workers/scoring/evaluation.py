"""What `manage.py intent_eval` and `content_eval` run: learn from one file of texts, and say how well another is read.

Files are JSONL, or the same compressed by gzip: {"text", "intent"}, of which "oos" is out of scope, or {"text",
"label"} of two labels.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score, roc_auc_score

from workers.models.embedder import Embedder
from workers.scoring.files import BadFile, text_of
from workers.scoring.intents import OOS, IntentClassifier
from workers.scoring.kinds import KindClassifier

TIMED = 200  # queries that are read one at a time
BINS = 10
POSITIVE = "educational"
Figures = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="manage.py", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["intent", "content"], help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="where the figures go as JSON")
    options = parser.parse_args(arguments)
    field = "intent" if options.what == "intent" else "label"
    try:
        train, test = (read(path, field) for path in (options.train, options.test))
        figures = (intent_figures if options.what == "intent" else content_figures)(train, test)
    except (ValueError, OSError) as error:  # scikit-learn's tells what there is too little of
        sys.exit(str(error))
    for name, value in figures.items():
        print(f"{name:20}{value:10.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


Rows = list[tuple[str, str]]


def read(path: Path, field: str) -> Rows:
    """The text and `field` of each line."""
    rows: Rows = []
    for number, line in enumerate(StringIO(text_of(path), newline=None), 1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except ValueError:
            raise BadFile(f"{path}, line {number} is not JSON") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str) or field not in record:
            raise BadFile(f'{path}, line {number}: expected {{"text": "...", "{field}": "..."}}')
        rows.append((record["text"], str(record[field])))
    if not rows:
        raise BadFile(f"{path}: there are no lines")
    return rows


def intent_figures(train: Rows, test: Rows) -> Figures:
    """In-scope accuracy counts what is wrongly called out of scope as wrong; macro F1 has out of scope as a class."""
    embedder = Embedder()

    def embed(texts: list[str]) -> np.ndarray:
        return np.array(embedder.embed(texts).vectors, np.float32)

    try:
        classifier = IntentClassifier.fit(embed([text for text, _ in train]), [intent for _, intent in train])
    except ValueError as error:
        raise BadFile(str(error)) from None
    wanted = np.array([intent for _, intent in test])
    found = np.array(classifier.predict(embed([text for text, _ in test])))
    began = time.perf_counter()
    timed = [classifier.predict(embed([text])) for text, _ in test[:TIMED]]
    inside = wanted != OOS
    return {
        "in_scope_accuracy": float((found == wanted)[inside].mean()) if inside.any() else 0.0,
        "oos_recall": float((found == OOS)[~inside].mean()) if (~inside).any() else 0.0,
        "macro_f1": float(f1_score(wanted, found, labels=np.unique(wanted), average="macro", zero_division=0)),
        "ms_per_query": (time.perf_counter() - began) / len(timed) * 1e3,
    }


def content_figures(train: Rows, test: Rows) -> Figures:
    """ECE: the mean distance of probability and frequency, over ten bins of probability."""
    labels = sorted({label for _, label in train})
    if len(labels) != 2 or not {label for _, label in test} <= set(labels):
        raise BadFile(f"there must be the same two labels in both files, not {labels} in the first")
    positive = POSITIVE if POSITIVE in labels else labels[-1]
    embedder = Embedder()
    classifier = KindClassifier(lambda texts: np.array(embedder.embed(texts).vectors, np.float32))
    classifier.fit([text for text, _ in train], [label == positive for _, label in train])
    found = classifier.probabilities([text for text, _ in test])
    truth = np.array([label == positive for _, label in test])
    return {
        "accuracy": float(((found >= 0.5) == truth).mean()),
        "auc": float(roc_auc_score(truth, found)) if truth.any() and not truth.all() else 0.0,
        "ece": calibration_error(found, truth),
    }


def calibration_error(found: np.ndarray, truth: np.ndarray) -> float:
    bins = np.minimum((found * BINS).astype(int), BINS - 1)
    groups = [bins == number for number in range(BINS)]
    return float(sum(abs(found[own].mean() - truth[own].mean()) * own.mean() for own in groups if own.any()))


if __name__ == "__main__":
    main()
