from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from workers.scoring.feed.catalogue import Batch, Catalogue
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.sources.source import Source

RECENT, DECAY = 10, 0.8


@dataclass
class Similar(Source):
    """What reads like what the learner took to last."""

    name: ClassVar[str] = "similar"
    vectors: np.ndarray

    @classmethod
    def fit(cls, past: Interactions, catalogue: Catalogue | None) -> "Similar | None":
        return cls(catalogue.vectors) if catalogue is not None else None

    def scores(self, batch: Batch) -> np.ndarray:
        interest = batch.history.recent(RECENT, DECAY) @ self.vectors
        interest /= np.maximum(np.linalg.norm(interest, axis=1, keepdims=True), 1e-9)
        return np.maximum(interest.astype(np.float32) @ self.vectors.T, 0)

    def about(self, batch: Batch, learner: int, items: np.ndarray) -> list[int | str]:
        row = batch.history.recent(RECENT, DECAY)[learner]
        if not len(row.indices):
            return [""] * len(items)
        likeness = row.data[:, None] * (self.vectors[row.indices] @ self.vectors[items].T)
        return [int(place) for place in row.indices[likeness.argmax(0)]]
