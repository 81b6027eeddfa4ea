"""The feed's model: sources propose, and a ranker learned from what people did next orders what they proposed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import lightgbm
import numpy as np
from safetensors.numpy import load, save

from workers.scoring.feed.catalogue import Batch, Catalogue
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.sources import SOURCES, Source

HELD = 0.2  # the share of each learner's rows, and of all time, that the ranker learns to foresee
LEARNERS = 2500  # from whom it learns, at most
PROPOSED = 100  # items of each source
AT_ONCE, THREADS = 256, 2  # learners of a block, and sources that look at it at a time
TREES: dict[str, Any] = {
    "objective": "lambdarank",
    "lambdarank_truncation_level": 20,
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "verbosity": -1,
    "num_threads": 2,
    "deterministic": True,
    "seed": 1,
}
ROUNDS = 150
LEAST = 20  # learners from whom it can learn; with fewer, what sources say is added up
TRUST = {
    **dict.fromkeys(("item_to_item", "sequence", "similar"), 1.0),
    **dict.fromkeys(("next_topic", "followed"), 0.7),
    "trending": 0.4,
    "popular": 0.1,
}


@dataclass(frozen=True)
class Proposals:
    """rows, items: [pairs], a learner's place in the batch and an item, ordered by learner. raw: [pairs, sources], what
    each says; strength: the same, as a share of the most that it says of any item to this learner. activity: [pairs],
    the logarithm of how much the learner did.
    """

    rows: np.ndarray
    items: np.ndarray
    raw: np.ndarray
    strength: np.ndarray
    activity: np.ndarray

    @property
    def features(self) -> np.ndarray:
        return np.hstack([self.raw, self.strength, self.activity[:, None]])


@dataclass(frozen=True)
class FeedModel:
    """ranker: None until enough was done to learn one. items: the ids that the sources' numbers stand for."""

    sources: tuple[Source, ...]
    ranker: lightgbm.Booster | None
    items: tuple[str, ...] = ()
    digest: str = ""

    @classmethod
    def fit(cls, past: Interactions, catalogue: Catalogue | None = None) -> "FeedModel":
        """The ranker learns from what sources that know only the beginning say of the end: of each learner's history,
        and of the time that all of them share, in which some learners are new.
        """
        return cls(fit_sources(past, catalogue), fit_ranker(past, catalogue), tuple(catalogue.ids) if catalogue else ())

    def dump(self) -> bytes:
        """As safetensors."""
        tree = self.ranker.model_to_string() if self.ranker is not None else ""
        tensors = {
            "ranker": np.frombuffer(tree.encode(), np.uint8),
            "items": np.frombuffer("\n".join(self.items).encode(), np.uint8),
        }
        for source in self.sources:
            tensors |= {f"{source.name}.{name}": np.ascontiguousarray(a) for name, a in source.arrays().items()}
        return save(tensors)

    @classmethod
    def parse(cls, data: bytes, catalogue: Catalogue) -> "FeedModel":
        """catalogue: begins with the items of `FeedModel.items_of(data)`."""
        tensors = load(data)
        sources = []
        for kind in SOURCES:
            prefix = f"{kind.name}."
            arrays = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            if (source := kind.of(arrays, catalogue)) is not None:
                sources.append(source)
        tree = tensors["ranker"].tobytes().decode()
        ranker = lightgbm.Booster(model_str=tree) if tree else None
        return cls(tuple(sources), ranker, cls.items_of(data), sha256(data).hexdigest())

    @staticmethod
    def items_of(data: bytes) -> tuple[str, ...]:
        return tuple(load(data)["items"].tobytes().decode().split())

    def engagement(self, found: Proposals) -> np.ndarray:
        """[pairs], from 0 for what each learner takes to least to 1 for what they take to most."""
        if self.ranker is None:
            trust = np.array([TRUST.get(source.name, 0.0) for source in self.sources], np.float32)
            said = found.strength @ trust
        else:
            said = np.asarray(self.ranker.predict(found.features, num_threads=2), np.float32)
        starts = np.flatnonzero(np.r_[True, np.diff(found.rows) > 0]) if len(said) else np.zeros(0, np.int64)
        sizes = np.diff(np.r_[starts, len(said)])
        least, most = (np.repeat(of.reduceat(said, starts), sizes) for of in (np.minimum, np.maximum))
        return np.asarray((said - least) / np.maximum(most - least, 1e-9), np.float32)

    def ranked(self, batch: Batch, count: int) -> np.ndarray:
        """[learners, count] of items, best first, without those that the learner knows; -1 where there are no more."""
        found = propose(self.sources, batch)
        order = np.lexsort((-self.engagement(found), found.rows))
        rows = found.rows[order]
        place = np.arange(len(order)) - np.searchsorted(rows, np.arange(len(batch)))[rows]
        kept = place < count
        result = np.full((len(batch), count), -1)
        result[rows[kept], place[kept]] = found.items[order[kept]]
        return result


def fit_sources(past: Interactions, catalogue: Catalogue | None) -> tuple[Source, ...]:
    fitted = (source.fit(past, catalogue) for source in SOURCES)
    return tuple(source for source in fitted if source is not None)


def fit_ranker(past: Interactions, catalogue: Catalogue | None) -> lightgbm.Booster | None:
    if not len(past):
        return None
    cuts = past.last_share(HELD), past.times > np.quantile(past.times, 1 - HELD)
    lessons = [lesson for held in cuts for lesson in _lessons(past.keep(~held), past.keep(held), catalogue)]
    if sum(len(sizes) for _, _, sizes in lessons) < LEAST:
        return None
    features, labels, groups = (np.concatenate(parts) for parts in zip(*lessons, strict=True))
    data = lightgbm.Dataset(features, labels.astype(int), group=groups)
    return lightgbm.train(TREES, data, ROUNDS)


def _lessons(
    before: Interactions, after: Interactions, catalogue: Catalogue | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """features, labels and the size of each learner's group, of those who were proposed something that they took to."""
    sources = fit_sources(before, catalogue)
    learners = np.flatnonzero(np.diff(after.starts))
    if len(learners) > LEARNERS:
        learners = np.sort(np.random.default_rng(1).choice(learners, LEARNERS, replace=False))
    for users in blocks(learners):
        found = propose(sources, Batch(before.of_users(users)))
        if not len(found.rows):
            continue
        hit = np.asarray(after.matrix[users][found.rows, found.items]).ravel() > 0
        useful = np.bincount(found.rows, hit, minlength=len(users)) > 0
        kept = useful[found.rows]
        yield found.features[kept], hit[kept], np.bincount(found.rows[kept], minlength=len(users))[useful]


def blocks(users: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(users), AT_ONCE):
        yield users[start : start + AT_ONCE]


def propose(sources: tuple[Source, ...], batch: Batch, allowed: np.ndarray | None = None) -> Proposals:
    """What any source has among its best, with what all of them say of it; nothing that a learner took to before, and
    nothing for which a source has no reason.

    allowed: [learners, items] of bool; without it all.
    """
    barred = batch.history.matrix.toarray() > 0
    if allowed is not None:
        barred |= ~allowed
    chosen = np.zeros(barred.shape, bool)

    def asked(source: Source) -> np.ndarray:
        scores = source.scores(batch)
        np.copyto(scores, -np.inf, where=barred)
        best = source.best(scores, PROPOSED)
        rows, places = np.nonzero(np.take_along_axis(scores, best, axis=1) > 0)
        chosen[rows, best[rows, places]] = True  # from several threads: none takes anything away
        return scores

    with ThreadPoolExecutor(THREADS) as pool:
        said = list(pool.map(asked, sources))
    chosen[barred] = False
    rows, items = chosen.nonzero()
    raw = np.stack([scores[rows, items] for scores in said], axis=1)
    most = np.stack([scores.max(1) for scores in said], axis=1)[rows]
    activity = np.log1p(np.diff(batch.history.starts)).astype(np.float32)[rows]
    return Proposals(rows, items, raw, raw / np.maximum(most, 1e-9), activity)
