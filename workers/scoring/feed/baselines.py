"""Recommenders that are known to be hard to beat (Ferrari Dacrema et al., arXiv:1907.06902), each tuned on a part of
the training data. They give a score to all items, at once for all learners that are asked for.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix, diags, issparse

from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.sources.source import strongest

Scorer = Callable[[Interactions], np.ndarray]  # of the learners' histories: [learners, items]


def _through(weights: np.ndarray | csr_matrix, history: Interactions) -> np.ndarray:
    found = history.matrix @ weights
    return np.asarray(found.todense() if issparse(found) else found, np.float32)


def popularity(past: Interactions) -> Iterator[Scorer]:
    counts = np.bincount(past.items, minlength=past.shape[1]).astype(np.float32)
    yield lambda history: np.tile(counts, (history.shape[0], 1))


def item_knn(past: Interactions) -> Iterator[Scorer]:
    """Cosine of the items' learners, with shrinkage (Sarwar et al., 2001)."""
    matrix = past.matrix
    norms = np.sqrt(np.asarray(matrix.sum(0)).ravel())
    common = (matrix.T @ matrix).tocoo()
    common.setdiag(0)
    common = common.tocoo()
    for shrink, neighbours in ((0, 50), (0, 200), (20, 50), (20, 200), (100, 200)):
        values = common.data / (norms[common.row] * norms[common.col] + shrink + 1e-9)
        near = strongest(
            csr_matrix((values.astype(np.float32), (common.row, common.col)), shape=common.shape), neighbours
        )
        yield partial(_through, near.T.tocsr())


def ease(past: Interactions) -> Iterator[Scorer]:
    """Steck, arXiv:1905.03375."""
    gram = (past.matrix.T @ past.matrix).toarray().astype(np.float64)
    place = np.arange(len(gram))
    for regularisation in (50, 200, 500, 1000):
        inverse = gram.copy()
        inverse[place, place] += regularisation
        inverse = np.linalg.inv(inverse)
        weights = (-inverse / np.diag(inverse)).astype(np.float32)
        weights[place, place] = 0
        yield partial(_through, weights)


def als(past: Interactions) -> Iterator[Scorer]:
    """Weighted matrix factorisation (Hu, Koren, Volinsky, 2008)."""
    for factors, regularisation, alpha in ((32, 0.1, 5), (64, 1.0, 10), (64, 10.0, 20), (128, 10.0, 10)):
        model = AlternatingLeastSquares(
            factors, regularization=regularisation, alpha=alpha, iterations=15, num_threads=2, random_state=1
        )
        model.fit(past.matrix, show_progress=False)

        def scores(history: Interactions, model: AlternatingLeastSquares = model) -> np.ndarray:
            learners = model.recalculate_user(np.arange(history.shape[0]), history.matrix)
            return np.asarray(learners @ model.item_factors.T, np.float32)

        yield scores


def markov(past: Interactions) -> Iterator[Scorer]:
    """What came next most often after the last item; of what never did, what is popular."""
    size = past.shape[1]
    same = past.users[1:] == past.users[:-1]
    pairs = past.items[:-1][same], past.items[1:][same]
    counted = csr_matrix((np.ones(len(pairs[0]), np.float32), pairs), shape=(size, size))
    chances = (diags(1 / np.maximum(np.asarray(counted.sum(1)).ravel(), 1)) @ counted).tocsr()
    counts = np.bincount(past.items, minlength=size)
    popular = (counts / max(1, counts.sum()) * 1e-3).astype(np.float32)
    yield lambda history: np.asarray((history.recent(1, 1.0) @ chances).todense(), np.float32) + popular


BASELINES: dict[str, Callable[[Interactions], Iterator[Scorer]]] = {
    "popularity": popularity,
    "item_knn": item_knn,
    "ease": ease,
    "als": als,
    "markov": markov,
}
