from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from workers.scoring.feed.catalogue import LEVELS, TEACHES, Batch, Catalogue, Learner
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.sources.source import Source, largest

LEVEL, QUALITY, TREND = 0.4, 0.3, 0.1  # beside an interest's 1


@dataclass
class Profile(Source):
    """What fits what the learner said of themselves."""

    name: ClassVar[str] = "interest"
    catalogue: Catalogue

    @classmethod
    def fit(cls, past: Interactions, catalogue: Catalogue | None) -> "Profile | None":
        return cls(catalogue) if catalogue is not None else None

    def scores(self, batch: Batch) -> np.ndarray:
        known = QUALITY * self.catalogue.quality + TREND * self.catalogue.trend
        scores = np.zeros((len(batch), len(self.catalogue)), np.float32)
        for row, learner in enumerate(batch.learners):
            scores[row] = self.interest(learner) + LEVEL * self.level(learner) + known
        return scores

    def best(self, scores: np.ndarray, count: int) -> np.ndarray:
        """Of what teaches and of what does not, so that there is some of both to be mixed."""
        teaches = self.catalogue.educational >= TEACHES
        kinds = (np.flatnonzero(teaches), np.flatnonzero(~teaches))
        return np.hstack([kind[largest(scores[:, kind], count // 2)] for kind in kinds])

    def interest(self, learner: Learner) -> np.ndarray:
        """[items] of 0 or 1."""
        found = np.zeros(len(self.catalogue), np.float32)
        for interest in learner.interests:
            found[self.catalogue.about.get(interest, [])] = 1
        return found

    def level(self, learner: Learner) -> np.ndarray:
        """[items]: 1 at the learner's level, 0.5 next to it."""
        away = np.abs(self.catalogue.levels - LEVELS.index(learner.level))
        return np.where(self.catalogue.levels < 0, 0, np.maximum(0, 1 - away / 2)) * (away < 2)

    def about(self, batch: Batch, learner: int, items: np.ndarray) -> list[int | str]:
        named = batch.learners[learner].interests
        return [next((name for name in sorted(named) if item in self.catalogue.members(name)), "") for item in items]
