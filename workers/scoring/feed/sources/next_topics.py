from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from workers.scoring.feed.catalogue import Batch, Catalogue, Learner
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.sources.source import Source

MASTERED = 2  # items of a topic that were completed, or all that it has


@dataclass
class NextTopics(Source):
    """What is of a topic that the learner has not mastered, and whose prerequisites they have."""

    name: ClassVar[str] = "next_topic"
    catalogue: Catalogue

    @classmethod
    def fit(cls, past: Interactions, catalogue: Catalogue | None) -> "NextTopics | None":
        return cls(catalogue) if catalogue is not None else None

    def scores(self, batch: Batch) -> np.ndarray:
        """Topics that follow from what was mastered count 1; those that anybody may begin with count 0.2."""
        items = self.catalogue.topics
        if not batch.learners:
            return np.zeros((len(batch), len(self.catalogue)), np.float32)
        return np.minimum(1, np.asarray(items @ self.next(batch.learners).T, np.float32).T)

    def next(self, learners: Sequence[Learner]) -> np.ndarray:
        """[learners, topics]"""
        items, needs = self.catalogue.topics, self.catalogue.prerequisites
        done = np.zeros((len(learners), items.shape[1]), np.float32)
        for row, learner in enumerate(learners):
            done[row] = np.asarray(items[list(learner.completed)].sum(0)).ravel()
        size = np.asarray(items.sum(0)).ravel()
        mastered = np.asarray(done >= np.maximum(1, np.minimum(MASTERED, size)), bool)
        count = np.asarray(needs.sum(1)).ravel()
        met = count <= np.asarray(needs @ mastered.T.astype(np.float32)).T
        begun = np.any(done > 0, axis=1, keepdims=True)
        return np.where(met & ~mastered & begun, np.where(count > 0, 1.0, 0.2), 0.0).astype(np.float32)

    def about(self, batch: Batch, learner: int, items: np.ndarray) -> list[int | str]:
        open_to = self.next([batch.learners[learner]])[0]
        topics = self.catalogue.topics[items].multiply(open_to).toarray()
        return [self.catalogue.topic_names[int(row.argmax())] if row.any() else "" for row in topics]
