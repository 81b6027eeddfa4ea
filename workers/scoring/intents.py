"""What a query wants: a linear head on the sentence embedding that also says "none of these".

A query whose best class is not far enough from what the head has seen is out of scope: the largest logit tells more of
that than the largest probability, for probabilities forget how large the logits were (Hendrycks et al.,
arXiv:1911.11132).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

OOS = "oos"
C = 30.0
FOLDS = 5
LOSS = 0.01  # of queries in scope, that may be called out of scope
SHIPPED = Path(__file__).parents[1] / "models" / "heads" / "intents.safetensors"


@dataclass(frozen=True)
class IntentClassifier:
    """weights: [labels, d + 1], the last column is the bias. threshold: the least logit of what is in scope."""

    labels: tuple[str, ...]
    weights: np.ndarray
    threshold: float

    @classmethod
    def fit(cls, vectors: np.ndarray, intents: Sequence[str]) -> "IntentClassifier":
        """vectors: [queries, d], of length 1. intents: of each; `OOS` is one more of them, and is not needed.

        The threshold comes from queries that the head has not learned from: so high that `LOSS` of those in scope that
        it gets right fall below it.
        """
        given = np.array(intents)
        labels, classes = np.unique(given, return_inverse=True)
        if len(labels) < 2:
            raise ValueError("there must be queries of two intents at least")
        found, right = np.zeros(len(given)), np.zeros(len(given), bool)
        counts = np.bincount(classes)
        several = np.flatnonzero(counts[classes] > 1)  # one that is alone is learned from, and not judged by
        if len(several):
            folds = StratifiedKFold(min(FOLDS, int(counts[counts > 1].min())), shuffle=True, random_state=0)
            for _, part in folds.split(several, classes[several]):
                held = several[part]
                seen = np.setdiff1d(np.arange(len(given)), held)
                logits = _logits(_weights(vectors[seen], classes[seen], len(labels)), vectors[held])
                found[held], right[held] = logits.max(1), logits.argmax(1) == classes[held]
        right &= given != OOS
        threshold = float(np.quantile(found[right], LOSS)) if right.any() else -np.inf
        return cls(tuple(labels.tolist()), _weights(vectors, classes, len(labels)), threshold)

    def predict(self, vectors: np.ndarray) -> list[str]:
        """vectors: [queries, d]."""
        logits = _logits(self.weights, vectors)
        best = logits.argmax(1)
        inside = logits.max(1) >= self.threshold
        return [self.labels[place] if known else OOS for place, known in zip(best, inside, strict=True)]

    def save(self, path: Path = SHIPPED) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = np.frombuffer("\n".join(self.labels).encode(), np.uint8)
        save_file({"labels": names, "weights": self.weights, "threshold": np.array([self.threshold], np.float32)}, path)

    @classmethod
    def load(cls, path: Path = SHIPPED) -> "IntentClassifier":
        kept = load_file(path)
        return cls(tuple(kept["labels"].tobytes().decode().split("\n")), kept["weights"], float(kept["threshold"][0]))


def _weights(rows: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    model = LogisticRegression(C=C, max_iter=500).fit(rows, classes)
    coefficients, bias = model.coef_, model.intercept_
    if count == 2:  # scikit-learn keeps one row for two classes
        coefficients, bias = np.vstack([-coefficients, coefficients]) / 2, np.concatenate([-bias, bias]) / 2
    return np.ascontiguousarray(np.hstack([coefficients, bias[:, None]]), np.float32)


def _logits(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows @ weights[:, :-1].T + weights[:, -1], np.float32)
