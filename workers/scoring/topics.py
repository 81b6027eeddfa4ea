"""Which topics a text is about, by the likeness of their embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MOST = 3
LEAST = 0.3  # cosine; what is less alike is about something else


@dataclass(frozen=True, slots=True)
class Topics:
    """vectors: [topics, d], of length 1."""

    slugs: tuple[str, ...]
    subjects: tuple[str, ...]
    vectors: np.ndarray

    @classmethod
    def of(cls, topics: Sequence[tuple[str, str, str]], embed: Callable[[list[str]], np.ndarray]) -> "Topics":
        """topics: slug, subject and name of each."""
        slugs, subjects, names = zip(*topics, strict=True) if topics else ((), (), ())
        texts = [f"{name} ({subject})" for name, subject in zip(names, subjects, strict=True)]
        return cls(slugs, subjects, embed(texts) if texts else np.zeros((0, 1), np.float32))

    def alike(self, vector: np.ndarray, subject: str) -> list[str]:
        """Slugs of the subject's topics, or of all where the text has none of theirs, the likest first."""
        own = [i for i, of in enumerate(self.subjects) if of == subject] or range(len(self.slugs))
        found = sorted(((float(self.vectors[i] @ vector), self.slugs[i]) for i in own), reverse=True)
        return [slug for likeness, slug in found[:MOST] if likeness >= LEAST]
