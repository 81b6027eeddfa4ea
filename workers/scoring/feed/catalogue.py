"""The items of the feed and the learners it is for, as rows of arrays."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from workers.scoring.feed.interactions import Interactions

LEVELS = ("beginner", "intermediate", "advanced")
HALF_AGE_S = 30 * 86_400  # after which an item is half as fresh
TEACHES = 0.5


@dataclass(frozen=True)
class Catalogue:
    """items: n of them, numbered as in `Interactions`. vectors: [n, d], of length 1. topics: [n, topics] of 0 or 1;
    prerequisites: [topics, topics], which topic (row) needs which (column). created: [n], seconds. trend: [n], 0 to 1.
    impressions: [n], how often it was shown lately.
    """

    ids: Sequence[str]
    titles: Sequence[str]
    subjects: Sequence[str]
    authors: Sequence[str]
    languages: Sequence[str]
    tags: Sequence[frozenset[str]]
    levels: np.ndarray  # [n], places in LEVELS; -1 is not known
    vectors: np.ndarray
    educational: np.ndarray
    quality: np.ndarray
    created: np.ndarray
    trend: np.ndarray
    impressions: np.ndarray
    shown: np.ndarray  # [n] of bool: published, and known to the models
    topics: csr_matrix
    topic_slugs: Sequence[str]
    topic_names: Sequence[str]
    prerequisites: csr_matrix

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def places(self) -> dict[str, int]:
        return {item: place for place, item in enumerate(self.ids)}

    @cached_property
    def about(self) -> dict[str, list[int]]:
        """The items of each subject, tag and topic."""
        found: dict[str, list[int]] = defaultdict(list)
        for place, (subject, tags) in enumerate(zip(self.subjects, self.tags, strict=True)):
            for name in {subject, *tags}:
                found[name].append(place)
        for place, topic in zip(*self.topics.nonzero(), strict=True):
            found[self.topic_slugs[topic]].append(int(place))
        return dict(found)

    @cached_property
    def subject_members(self) -> csr_matrix:
        """[n, subjects] of 1 where the item is of the subject."""
        _, numbers = np.unique(np.array(self.subjects, dtype=str), return_inverse=True)
        columns = int(numbers.max()) + 1 if len(numbers) else 0
        return csr_matrix((np.ones(len(self), np.float32), (np.arange(len(self)), numbers)), (len(self), columns))

    def members(self, name: str) -> frozenset[int]:
        """The items of a subject, a tag or a topic."""
        return self._members.setdefault(name, frozenset(self.about.get(name, ())))

    @cached_property
    def _members(self) -> dict[str, frozenset[int]]:
        return {}

    def in_language(self, language: str) -> np.ndarray:
        """[n] of 0 or 1; a variant of a language is that language."""
        return self._languages[language.partition("-")[0].lower()]

    @cached_property
    def _languages(self) -> Mapping[str, np.ndarray]:
        spoken = np.array([language.partition("-")[0].lower() for language in self.languages])
        found: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(spoken), np.float32))
        return found | {language: (spoken == language).astype(np.float32) for language in set(spoken.tolist())}

    def freshness(self, now: float) -> np.ndarray:
        return np.asarray(0.5 ** (np.maximum(0, now - self.created) / HALF_AGE_S), np.float32)


@dataclass(frozen=True)
class Learner:
    """ended: places of items not to be shown again. tired: of those that were shown often and not taken to.
    foresight: 0 to 1 for some items, by their places: how much the language model expects them to take to it."""

    interests: frozenset[str] = frozenset()
    level: str = "beginner"
    language: str = "en"
    follows: frozenset[str] = frozenset()
    completed: Sequence[int] = ()
    ended: Sequence[int] = ()
    tired: Sequence[int] = ()
    foresight: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Learners for whom items are to be found; history: what they took to, numbered as they are here.

    learners: nothing, where no more is known of them: so it is of the past, from which the ranker learns.
    """

    history: Interactions
    learners: Sequence[Learner] = ()
    now: float = 0.0  # seconds

    def __len__(self) -> int:
        return self.history.shape[0]
