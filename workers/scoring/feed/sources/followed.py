from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from workers.scoring.feed.catalogue import Batch, Catalogue
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.sources.source import Source


@dataclass
class Followed(Source):
    """What is by an author whom the learner follows, the newer the more."""

    name: ClassVar[str] = "followed"
    catalogue: Catalogue

    @classmethod
    def fit(cls, past: Interactions, catalogue: Catalogue | None) -> "Followed | None":
        return cls(catalogue) if catalogue is not None else None

    def scores(self, batch: Batch) -> np.ndarray:
        fresh = 0.5 + 0.5 * self.catalogue.freshness(batch.now)
        authors = np.array(self.catalogue.authors, dtype=object)
        scores = np.zeros((len(batch), len(self.catalogue)), np.float32)
        for row, learner in enumerate(batch.learners):
            scores[row] = np.isin(authors, list(learner.follows)) * fresh
        return scores

    def about(self, batch: Batch, learner: int, items: np.ndarray) -> list[int | str]:
        return [self.catalogue.authors[item] for item in items]
