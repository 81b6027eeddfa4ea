"""Small heads on a sentence embedding: does a text teach, how well is it made, for which level.

Each is a logistic regression, trained by `python -m workers.scoring` and shipped as a file of a few kilobytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from workers.scoring.text import features

SHIPPED = Path(__file__).parents[1] / "models" / "heads" / "content.safetensors"
LEVELS = ("beginner", "intermediate", "advanced")


@dataclass(frozen=True, slots=True)
class Judgement:
    educational: float  # the probability that it teaches, rather than entertains
    quality: float  # 0 to 1
    level: str


@dataclass(frozen=True, slots=True)
class Heads:
    """weights: of `educational` [d + 1], `quality` [FEATURES + 1] and `level` [LEVELS, d + FEATURES + 1]; the last of
    each row is its bias. d: the length of an embedding."""

    weights: dict[str, np.ndarray]
    digest: str

    @classmethod
    def load(cls, path: Path = SHIPPED) -> "Heads":
        return cls(load_file(path), sha256(path.read_bytes()).hexdigest())

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.weights, path)

    def judge(self, texts: Sequence[str], vectors: np.ndarray) -> list[Judgement]:
        """vectors: [texts, d], the embeddings of `texts`."""
        counted = np.stack([features(text) for text in texts])
        educational = _sigmoid(_with_bias(vectors) @ self.weights["educational"])
        quality = _sigmoid(_with_bias(counted) @ self.weights["quality"])
        levels = (_with_bias(np.hstack([vectors, counted])) @ self.weights["level"].T).argmax(1)
        return [
            Judgement(float(e), float(q), LEVELS[level])
            for e, q, level in zip(educational, quality, levels, strict=True)
        ]


def _with_bias(rows: np.ndarray) -> np.ndarray:
    return np.hstack([rows, np.ones((len(rows), 1), rows.dtype)])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
