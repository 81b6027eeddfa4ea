from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_matrix

from workers.scoring.feed.catalogue import Batch, Catalogue
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.sources.source import Source, causes, packed, product, strongest, unpacked

DENSE = 5000  # items whose matrix is inverted: seconds and 200 MB
REGULARISATION = 0.3  # times the mean of the diagonal
NEIGHBOURS = 500
RECENT, DECAY = 500, 0.99


@dataclass
class ItemToItem(Source):
    """What goes with what a learner did: EASE (Steck, arXiv:1905.03375), over the items that most people know."""

    name: ClassVar[str] = "item_to_item"
    weights: csr_matrix  # [items, items]

    @classmethod
    def fit(cls, past: Interactions, catalogue: Catalogue | None) -> "ItemToItem":
        size = past.shape[1]
        if not len(past):
            return cls(csr_matrix((size, size), dtype=np.float32))
        counts = np.bincount(past.matrix.indices, minlength=size)
        known = np.sort(np.argsort(-counts, kind="stable")[: min(DENSE, (counts > 0).sum())])
        matrix = past.matrix[:, known]
        gram = (matrix.T @ matrix).toarray().astype(np.float64)
        diagonal = np.arange(len(known))
        gram[diagonal, diagonal] += REGULARISATION * gram[diagonal, diagonal].mean()
        inverse = np.linalg.inv(gram)
        found = -inverse / np.diag(inverse)
        found[diagonal, diagonal] = 0
        near = strongest(csr_matrix(found.astype(np.float32)), NEIGHBOURS).tocoo()
        return cls(csr_matrix((near.data, (known[near.row], known[near.col])), shape=(size, size)))

    def scores(self, batch: Batch) -> np.ndarray:
        return product(batch.history.recent(RECENT, DECAY), self.weights)

    def about(self, batch: Batch, learner: int, items: np.ndarray) -> list[int | str]:
        return causes(batch.history.recent(RECENT, DECAY), learner, self.weights, items)

    def arrays(self) -> dict[str, np.ndarray]:
        return packed(self.weights)

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], catalogue: Catalogue) -> "ItemToItem":
        return cls(unpacked(arrays, len(catalogue)))
