from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags

from workers.scoring.feed.catalogue import Batch, Catalogue
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.sources.source import Source, causes, packed, product, strongest, unpacked

AHEAD = 5  # how far ahead counts as next
SHRINK = 10.0  # transitions that an item must have to be believed by half
NEIGHBOURS = 200
RECENT, DECAY = 20, 0.8


@dataclass
class Sequence(Source):
    """What people did next after what the learner did last."""

    name: ClassVar[str] = "sequence"
    transitions: csr_matrix  # [items, items], from and to

    @classmethod
    def fit(cls, past: Interactions, catalogue: Catalogue | None) -> "Sequence":
        size = past.shape[1]
        counted = csr_matrix((size, size), dtype=np.float32)
        for gap in range(1, AHEAD + 1):
            same = past.users[gap:] == past.users[:-gap]
            pairs = past.items[:-gap][same], past.items[gap:][same]
            counted += coo_matrix((np.full(len(pairs[0]), 1 / gap, np.float32), pairs), shape=(size, size)).tocsr()
        outgoing = np.asarray(counted.sum(1)).ravel()
        incoming = np.asarray(counted.sum(0)).ravel()
        # what follows everything says little of what follows this: the root of how often it follows at all
        shares = diags(1 / (outgoing + SHRINK)) @ counted @ diags(1 / np.sqrt(incoming + SHRINK))
        return cls(strongest(shares.tocsr(), NEIGHBOURS))

    def scores(self, batch: Batch) -> np.ndarray:
        return product(batch.history.recent(RECENT, DECAY), self.transitions)

    def about(self, batch: Batch, learner: int, items: np.ndarray) -> list[int | str]:
        return causes(batch.history.recent(RECENT, DECAY), learner, self.transitions, items)

    def arrays(self) -> dict[str, np.ndarray]:
        return packed(self.transitions)

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], catalogue: Catalogue) -> "Sequence":
        return cls(unpacked(arrays, len(catalogue)))
