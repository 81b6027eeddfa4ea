"""Who did what, and when: the data from which the feed learns."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class Interactions:
    """One row for each thing that a learner did with an item, in the order of learners, and of time for each of them.

    users, items: [rows], numbers from 0. times: [rows], seconds. weights: [rows], how much it says of the interest.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    weights: np.ndarray
    shape: tuple[int, int]  # learners, items
    starts: np.ndarray = field(init=False)  # [learners + 1], where each learner's rows begin

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", np.searchsorted(self.users, np.arange(self.shape[0] + 1)))

    @classmethod
    def of(
        cls, users: np.ndarray, items: np.ndarray, times: np.ndarray, weights: np.ndarray, shape: tuple[int, int]
    ) -> "Interactions":
        """Of rows in any order; those of a learner at the same time keep theirs."""
        order = np.lexsort((times, users))  # stable
        return cls(users[order], items[order], times[order], weights[order].astype(np.float32), shape)

    @classmethod
    def none(cls, items: int, users: int = 0) -> "Interactions":
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, nothing.astype(float), nothing.astype(np.float32), (users, items))

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def matrix(self) -> csr_matrix:
        """[learners, items] of 1 where there was anything."""
        matrix = csr_matrix((np.ones(len(self), np.float32), (self.users, self.items)), shape=self.shape)
        matrix.data[:] = 1  # what was done twice was summed
        return matrix

    @property
    def now(self) -> float:
        return float(self.times.max()) if len(self) else 0.0

    @property
    def span(self) -> float:
        """Seconds from the first to the last."""
        return float(self.now - self.times.min()) if len(self) else 0.0

    def keep(self, rows: np.ndarray) -> "Interactions":
        """rows: [rows] of bool."""
        return Interactions(self.users[rows], self.items[rows], self.times[rows], self.weights[rows], self.shape)

    def of_users(self, users: np.ndarray) -> "Interactions":
        """Of these learners alone, who are numbered from 0 in their order."""
        counts = self.starts[users + 1] - self.starts[users]
        rows = np.repeat(self.starts[users], counts) + _ranges(counts)
        numbers = np.repeat(np.arange(len(users)), counts)
        shape = (len(users), self.shape[1])
        return Interactions(numbers, self.items[rows], self.times[rows], self.weights[rows], shape)

    def recent(self, length: int, decay: float) -> csr_matrix:
        """[learners, items]: each learner's last `length` rows, the last with its weight, those before with less."""
        ends = self.starts[1:]
        counts = np.minimum(np.diff(self.starts), length)
        places = np.repeat(ends - counts, counts) + _ranges(counts)
        age = np.repeat(ends, counts) - 1 - places
        values = self.weights[places] * np.float32(decay) ** age.astype(np.float32)
        return csr_matrix((values, (self.users[places], self.items[places])), shape=self.shape)

    def last_share(self, share: float) -> np.ndarray:
        """[rows] of bool: the last `share` of each learner's rows, one at least, none of those who have but one."""
        counts = np.diff(self.starts)
        held = np.where(counts > 1, np.maximum(1, np.round(counts * share)), 0).astype(np.int64)
        return np.asarray(np.repeat(self.starts[1:] - held, counts) <= np.arange(len(self)))


def _ranges(counts: np.ndarray) -> np.ndarray:
    """0, 1, … for each count, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
