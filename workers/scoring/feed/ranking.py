"""Rankings of a batch of learners: what is foreseen of each item, joined with what is known of it, and why."""

from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from workers.scoring.feed.catalogue import TEACHES, Batch, Catalogue
from workers.scoring.feed.model import FeedModel, Proposals, propose
from workers.scoring.feed.sources import Source
from workers.scoring.feed.sources.content import DECAY, RECENT
from workers.scoring.feed.sources.followed import Followed
from workers.scoring.feed.sources.next_topics import NextTopics
from workers.scoring.feed.sources.profile import Profile

TEACHING, OTHERS = 100, 60  # of a ranking
OF_A_SUBJECT = 40  # so that there is something to mix
EXPLORED, SHOWN_LITTLE = 8, 20  # items that are tried, of those that were shown less often than that
REASONS = 3
PRIOR = 3.0  # as much as one item that was liked says
STRONG = 0.5  # of what a source says most, from which on it is a reason
NAMED_OR_NOTHING = ("item_to_item", "sequence", "similar", "next_topic", "followed", "interest")


@dataclass(slots=True)
class Scored:
    """An item of a learner's ranking. about: what a reason names."""

    item: int
    parts: dict[str, float]
    reasons: list[tuple[str, str]] = field(default_factory=list)
    propensity: float = 1.0


def rankings(model: FeedModel, catalogue: Catalogue, batch: Batch, weights: dict[str, float]) -> list[list[Scored]]:
    """The best items of each learner of the batch, and some to be tried, drawn by a chance that can be repeated."""
    allowed = np.tile(catalogue.shown, (len(batch), 1))
    for row, learner in enumerate(batch.learners):
        allowed[row, [*learner.ended, *learner.tired]] = False
    found = propose(model.sources, batch, allowed)
    parts = known_parts(model, catalogue, batch, found)
    total = np.sum([weights[name] * values for name, values in parts.items()], axis=0)
    ends = np.searchsorted(found.rows, np.arange(len(batch) + 1))
    result = []
    for row in range(len(batch)):
        own = np.arange(ends[row], ends[row + 1])
        own = _varied(own[np.argsort(-total[own], kind="stable")], found, catalogue)
        reasons = reasons_of(model, catalogue, batch, row, found, own)
        scored = [
            Scored(int(found.items[pair]), {name: round(float(of[pair]), 4) for name, of in parts.items()}, why)
            for pair, why in zip(own, reasons, strict=True)
        ]
        result.append(scored + explored(catalogue, batch, row, allowed[row], {one.item for one in scored}))
    return result


def known_parts(model: FeedModel, catalogue: Catalogue, batch: Batch, found: Proposals) -> dict[str, np.ndarray]:
    """[pairs] each, from 0 to 1."""
    profile = next(source for source in model.sources if isinstance(source, Profile))
    named = np.stack([profile.interest(learner) for learner in batch.learners])
    interest = np.maximum(named, subject_interest(catalogue, batch))
    level = np.stack([profile.level(learner) for learner in batch.learners])
    language = np.stack([catalogue.in_language(learner.language) for learner in batch.learners])

    def said_by(kind: type[Source]) -> np.ndarray:
        """By a source that the ranker cannot learn from, for the past does not tell what it needs to know."""
        return found.raw[:, next(place for place, source in enumerate(model.sources) if isinstance(source, kind))]

    return {
        "engagement": model.engagement(found),
        "interest": interest[found.rows, found.items],
        "level": level[found.rows, found.items],
        "language": language[found.rows, found.items],
        "followed": said_by(Followed),
        "next_topic": said_by(NextTopics),
        "educational": catalogue.educational[found.items],
        "quality": catalogue.quality[found.items],
        "freshness": catalogue.freshness(batch.now)[found.items],
        "trend": catalogue.trend[found.items],
        "foresight": foreseen(batch, found),
    }


def subject_interest(catalogue: Catalogue, batch: Batch) -> np.ndarray:
    """[learners, items], from 0 to 1: the share that the item's subject has of what the learner took to last.

    So a feed's subjects follow its learner's (calibration: Steck, 2018), also those that they did not name; `PRIOR`
    keeps the first click from being all that is known of them.
    """
    recent = batch.history.recent(RECENT, DECAY)
    of_subjects = (recent @ catalogue.subject_members).toarray()
    share = of_subjects / (of_subjects.sum(axis=1, keepdims=True) + PRIOR)
    return np.asarray(share[:, catalogue.subject_members.indices], np.float32)


def foreseen(batch: Batch, found: Proposals) -> np.ndarray:
    """[pairs]: what the language model expects; 0 for what it was not asked about, which so comes after the rest."""
    values = np.zeros(len(found.items))
    ends = np.searchsorted(found.rows, np.arange(len(batch) + 1))
    for row, learner in enumerate(batch.learners):
        if learner.foresight:
            own = slice(ends[row], ends[row + 1])
            values[own] = [learner.foresight.get(int(item), 0.0) for item in found.items[own]]
    return values


def _varied(own: np.ndarray, found: Proposals, catalogue: Catalogue) -> np.ndarray:
    """The best of `own`, which is in order, of what teaches and of what does not, not too many of a subject."""
    left = {True: TEACHING, False: OTHERS}
    subjects: dict[str, int] = {}
    kept = []
    for pair in own:
        item = found.items[pair]
        teaches, subject = bool(catalogue.educational[item] >= TEACHES), catalogue.subjects[item]
        if left[teaches] and subjects.get(subject, 0) < OF_A_SUBJECT:
            left[teaches] -= 1
            subjects[subject] = subjects.get(subject, 0) + 1
            kept.append(pair)
    return np.array(kept, np.int64)


def reasons_of(
    model: FeedModel, catalogue: Catalogue, batch: Batch, row: int, found: Proposals, own: np.ndarray
) -> list[list[tuple[str, str]]]:
    """For each pair of `own`, codes with what they are about: of the sources that say most, the strongest first."""
    items, strength = found.items[own], found.strength[own]
    about = [_names(source, catalogue, batch, row, items) for source in model.sources]
    names = [source.name for source in model.sources]
    result = []
    for place, item in enumerate(items):
        order = np.argsort(-strength[place], kind="stable")
        why = [
            (names[of], about[of][place])
            for of in order
            if strength[place, of] >= STRONG
            and found.raw[own[place], of] > 0
            and (about[of][place] or names[of] not in NAMED_OR_NOTHING)
        ]
        result.append(why[:REASONS] or [("educational" if catalogue.educational[item] >= TEACHES else "explore", "")])
    return result


def _names(source: Source, catalogue: Catalogue, batch: Batch, row: int, items: np.ndarray) -> list[str]:
    found = source.about(batch, row, items)
    return [one if isinstance(one, str) else catalogue.titles[one] for one in found]


def explored(catalogue: Catalogue, batch: Batch, row: int, allowed: np.ndarray, ranked: set[int]) -> list[Scored]:
    """A few that hardly anybody was shown, drawn from all of them: what they do tells more than a ranker guesses."""
    seen = batch.history.items[batch.history.users == row]
    pool = np.flatnonzero(allowed & (catalogue.impressions < SHOWN_LITTLE))
    pool = np.array([item for item in np.setdiff1d(pool, seen) if item not in ranked], np.int64)
    if len(pool) <= EXPLORED:
        return []
    seed = sha256(f"{row} {batch.now} {len(seen)}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(seed[:8])).choice(pool, EXPLORED, replace=False)
    parts = [
        {"educational": round(float(catalogue.educational[i]), 4), "quality": round(float(catalogue.quality[i]), 4)}
        for i in drawn
    ]
    propensity = EXPLORED / len(pool)
    return [Scored(int(i), part, [("explore", "")], propensity) for i, part in zip(drawn, parts, strict=True)]
