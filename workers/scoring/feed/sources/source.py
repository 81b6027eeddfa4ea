from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_matrix

from workers.scoring.feed.catalogue import Batch, Catalogue
from workers.scoring.feed.interactions import Interactions


class Source(ABC):
    """Proposes items to learners, for one reason that a person understands."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, past: Interactions, catalogue: Catalogue | None) -> "Source | None":
        """Learn from what everybody did; None where it needs to know the items and does not."""

    @abstractmethod
    def scores(self, batch: Batch) -> np.ndarray:
        """[learners, items] of float32; 0: nothing speaks for it."""

    def best(self, scores: np.ndarray, count: int) -> np.ndarray:
        """[learners, at most `count`] of items: those that it proposes. scores: its own, -inf for what is barred."""
        return largest(scores, count)

    def about(self, batch: Batch, learner: int, items: np.ndarray) -> list[int | str]:
        """What the reason for each item names: an item's place, a word, or "" where there is nothing to name."""
        return [""] * len(items)

    def arrays(self) -> dict[str, np.ndarray]:
        """What was learned, to be kept; nothing where the catalogue says it all."""
        return {}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], catalogue: Catalogue) -> "Source | None":
        """From what was kept; items that have come since are at the catalogue's end."""
        return cls.fit(Interactions.none(len(catalogue)), catalogue)


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """[rows, at most `count`]: the places of the largest in each row, in no order."""
    first = max(scores.shape[1] - count, 0)
    return np.argpartition(scores, first, axis=1)[:, first:] if scores.size else np.zeros((len(scores), 0), np.int64)


def strongest(matrix: csr_matrix, count: int) -> csr_matrix:
    """Each row's `count` entries that are farthest from 0."""
    matrix = matrix.tocsr()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-np.abs(matrix.data), rows))
    place = np.arange(len(order)) - matrix.indptr[rows]
    kept = order[place < count]
    return csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)


def product(left: csr_matrix, right: csr_matrix) -> np.ndarray:
    return np.asarray((left @ right).todense(), np.float32)


def causes(history: csr_matrix, learner: int, matrix: csr_matrix, items: np.ndarray) -> list[int | str]:
    """Of what the learner did, the item that speaks most for each of `items`."""
    row = history[learner]
    if not len(row.indices):
        return [""] * len(items)
    found = row.data[:, None] * matrix[row.indices][:, items].toarray()
    return [
        int(row.indices[place]) if most > 0 else "" for place, most in zip(found.argmax(0), found.max(0), strict=True)
    ]


def packed(matrix: csr_matrix) -> dict[str, np.ndarray]:
    return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}


def unpacked(arrays: dict[str, np.ndarray], size: int) -> csr_matrix:
    """[size, size], with nothing in the rows and columns that were not there."""
    known = len(arrays["indptr"]) - 1
    matrix = csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(known, known))
    matrix.resize((size, size))
    return matrix
