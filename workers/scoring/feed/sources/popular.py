from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from workers.scoring.feed.catalogue import Batch, Catalogue
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.sources.source import Source

LEAST = np.float32(1e-6)  # for what nobody did yet is better than nothing
DAY_S = 86_400.0
HALF_LIFE_S = 3 * DAY_S
HALF_LIFE_SHARE = 0.05  # of all the time that is known, where that is longer


@dataclass
class Popular(Source):
    """What many did."""

    name: ClassVar[str] = "popular"
    counts: np.ndarray  # [items]

    @classmethod
    def fit(cls, past: Interactions, catalogue: Catalogue | None) -> "Popular":
        return cls(LEAST + np.log1p(np.bincount(past.items, minlength=past.shape[1])).astype(np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        return {"counts": self.counts}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], catalogue: Catalogue) -> "Popular":
        return cls(np.pad(arrays["counts"], (0, len(catalogue) - len(arrays["counts"]))))

    def scores(self, batch: Batch) -> np.ndarray:
        return np.tile(self.counts, (len(batch), 1))


@dataclass
class Trending(Popular):
    """What many do now: what they did counts half after a half-life."""

    name: ClassVar[str] = "trending"

    @classmethod
    def fit(cls, past: Interactions, catalogue: Catalogue | None) -> "Trending":
        half_life = max(HALF_LIFE_S, HALF_LIFE_SHARE * past.span)
        weights = 0.5 ** ((past.now - past.times) / half_life)
        return cls(np.log1p(np.bincount(past.items, weights, minlength=past.shape[1])).astype(np.float32))
