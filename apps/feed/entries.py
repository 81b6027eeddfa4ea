"""An entry of a ranking: an item and all that speaks for it, each from 0 to 1."""

from dataclasses import dataclass, field
from typing import Any

PARTS = (
    *("engagement", "interest", "level", "language", "followed", "next_topic"),  # of this learner
    *("educational", "quality", "freshness", "trend", "foresight"),
)

# Why an item is in a feed, in the words of the one who reads it; {} is what it is about.
REASONS = {
    "interest": "You are interested in {}.",
    "level": "It fits your level: {}.",
    "item_to_item": "Learners who took to “{}” took to this as well.",
    "sequence": "What others went on with after “{}”.",
    "similar": "It is like “{}”, which you took to.",
    "next_topic": "Your next topic: {}.",
    "followed": "By {}, whom you follow.",
    "trending": "Many learners take to it now.",
    "popular": "Many learners took to it.",
    "educational": "It teaches, and it is well made.",
    "new": "It is new.",
    "explore": "Something new to try.",
}


@dataclass(slots=True)
class Entry:
    """parts: of `PARTS`, what is missing is 0. reasons: codes of `REASONS`, each with what it is about, the strongest
    first. propensity: how probable it was that it is shown; less than 1 for what is there to be tried."""

    item: str
    subject: str
    author: str = ""
    teaches: bool = True
    parts: dict[str, float] = field(default_factory=dict)
    reasons: list[tuple[str, str]] = field(default_factory=list)
    propensity: float = 1.0

    @property
    def explored(self) -> bool:
        return self.propensity < 1

    @property
    def said(self) -> list[dict[str, str]]:
        return [{"code": code, "text": REASONS[code].format(about)} for code, about in self.reasons]

    def dump(self) -> dict[str, Any]:
        """What `Entry(**…)` takes; `dataclasses.asdict` would copy it all, ten times as long."""
        return {name: getattr(self, name) for name in self.__slots__}

    def contributions(self, weights: dict[str, float]) -> dict[str, float]:
        return {part: weights[part] * self.parts.get(part, 0.0) for part in PARTS}

    def score(self, weights: dict[str, float]) -> float:
        return sum(weights[part] * value for part, value in self.parts.items())
