"""What replies are worth: a table of measures, and how sure each of them is. Pure functions; no model is needed.

Differences are between answers to the same items, so they are resampled together (the paired bootstrap of Koehn,
"Statistical Significance Tests for Machine Translation Evaluation", 2004). Randomness has a fixed seed.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata

from workers.models.template import Message
from workers.protocols import Refused
from workers.training.arithmetic import calculates, concludes, states

CONFIDENCE = 0.95
RESAMPLES = 2000
BINS = 10  # of the calibration error
GRADES = {"beginner": 7, "intermediate": 10, "advanced": 14}  # the highest school grade that a level may need
STEPS = 2.0  # a path may have so many times the steps of the reference, or so many times fewer

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Item:
    """A problem with a reference reply, the last of its `messages`, and what measures need beside.

    answer: the final answer. hint: it must not be given away. level: whom the reply is for (see `GRADES`).
    expected_engagement: 0 to 1; the reply is such a number. learning_path: the reference's steps. intent: with
    which the reply to a query begins.
    """

    messages: tuple[Message, ...]
    answer: str = ""
    hint: bool = False
    level: str = ""
    expected_engagement: float | None = None
    learning_path: tuple[str, ...] = ()
    intent: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Item":
        """An item of a JSON record with these fields. Raises `Refused` (`invalid_example`)."""
        if unknown := record.keys() - {field.name for field in fields(cls)}:
            raise Refused("invalid_example", f"it has an unknown field {min(unknown)!r}")
        if "messages" not in record:
            raise Refused("invalid_example", "it has no messages")
        if (level := record.get("level")) and level not in GRADES:
            raise Refused("invalid_example", f"its level {level!r} is not one of {', '.join(GRADES)}")
        rest = {"messages": tuple(record["messages"]), "learning_path": tuple(record.get("learning_path", ()))}
        return cls(**{**record, **rest, "answer": str(record.get("answer", ""))})

    @property
    def question(self) -> str:
        return "\n".join(message["content"] for message in self.messages if message["role"] == "user")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model makes of an item.

    logprob, tokens: of the reference reply with its turn end, in nats; NaN where the engine tells none. text: the
    model's own reply; ended: by itself. engagement: what it expects of the learner, 0 to 1.
    """

    logprob: float = math.nan
    tokens: int = 1
    text: str = ""
    ended: bool = False
    engagement: float = math.nan


# --- what is observed of a reply ---


def grade(text: str) -> float:
    """The school grade that a text needs: the automated readability index (Smith and Senter, 1967)."""
    words = re.findall(r"\S*\w\S*", text)
    sentences = [part for part in re.split(r"[.!?]+(?:\s|$)|\n+", text) if re.search(r"\w", part)]
    characters = sum(len(re.findall(r"\w", word)) for word in words)
    return 4.71 * characters / len(words) + 0.5 * len(words) / len(sentences) - 21.43


def suits(text: str, level: str) -> bool:
    return bool(re.search(r"\w", text)) and grade(text) <= GRADES[level]


def is_path(reply: Reply, reference: Sequence[str]) -> bool:
    """Whether it is a learning path: ended, a step on each line, none twice, about as many as the reference has."""
    lines = [line.strip() for line in reply.text.strip().split("\n")]
    few, many = len(reference) / STEPS, len(reference) * STEPS
    distinct = len({line.casefold() for line in lines}) == len(lines)
    return reply.ended and all(lines) and distinct and few <= len(lines) <= many


# --- statistics: of columns [..., items] ---


def mean(values: Column) -> Column:
    return values.mean(-1)


def per_token(nats: Column, tokens: Column) -> Column:
    return nats.sum(-1) / tokens.sum(-1)


def auc(predicted: Column, expected: Column) -> Column:
    """The chance that an item with an expected engagement of 0.5 or more is ranked above one with less."""
    high = expected >= 0.5
    n, m = high.sum(-1), (~high).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN where there is only one kind
        return ((rankdata(predicted, axis=-1) * high).sum(-1) - n * (n + 1) / 2) / (n * m)


def calibration_error(predicted: Column, expected: Column) -> Column:
    """Expected calibration error: how far predictions of about the same size are off, on average."""
    places = np.minimum((predicted * BINS).astype(int), BINS - 1)
    off = [np.abs(((predicted - expected) * (places == place)).sum(-1)) for place in range(BINS)]
    return np.sum(off, axis=0) / predicted.shape[-1]


# --- the table ---


class Measure(NamedTuple):
    """observe: the columns of `statistic` for one item. applies: to which items. rate: they are 0 or 1."""

    name: str
    better: Literal["higher", "lower"]
    applies: Callable[[Item], bool]
    observe: Callable[[Item, Reply], tuple[float, ...]]
    statistic: Callable[..., Column] = mean
    rate: bool = True


def is_rated(item: Item) -> bool:
    return item.expected_engagement is not None


def can_leak(item: Item) -> bool:
    return item.hint and bool(item.answer) and not states(item.question, item.answer)


def rated(item: Item, reply: Reply) -> tuple[float, ...]:
    return reply.engagement, item.expected_engagement or 0.0


MEASURES: tuple[Measure, ...] = (
    Measure("nll", "lower", lambda i: True, lambda i, r: (-r.logprob, r.tokens), per_token, rate=False),
    Measure("turn_end", "higher", lambda i: not is_rated(i), lambda i, r: (r.ended and bool(r.text.strip()),)),
    Measure(
        "exact_match", "higher", lambda i: bool(i.answer) and not i.hint, lambda i, r: (concludes(r.text, i.answer),)
    ),
    Measure("arithmetic", "higher", lambda i: bool(i.answer), lambda i, r: (calculates(r.text),)),
    Measure("answer_leak", "lower", can_leak, lambda i, r: (states(r.text, i.answer),)),
    Measure("readability", "higher", lambda i: bool(i.level), lambda i, r: (suits(r.text, i.level),)),
    Measure("auc", "higher", is_rated, rated, auc, rate=False),
    Measure("calibration_error", "lower", is_rated, rated, calibration_error, rate=False),
    Measure("intent", "higher", lambda i: bool(i.intent), lambda i, r: (r.text.partition(",")[0].strip() == i.intent,)),
    Measure("validity", "higher", lambda i: bool(i.learning_path), lambda i, r: (is_path(r, i.learning_path),)),
)


def compare(items: Sequence[Item], replies: Mapping[str, Sequence[Reply]]) -> dict[str, Any]:
    """Every measure that the items allow, for each of those who replied, with the first one's differences to the rest.

    `{measure: {"better", who: {"n", "mean", "low", "high"}, ..., "difference_to_<who>": {"mean", "low", "high"}}}`;
    low and high bound 95% intervals: Wilson's of rates, else the bootstrap's.
    """
    report: dict[str, Any] = {}
    for measure in MEASURES:
        chosen = [index for index, item in enumerate(items) if measure.applies(item)]
        columns = {
            who: np.array([measure.observe(items[index], made[index]) for index in chosen], dtype=float).T
            for who, made in replies.items()
        }
        if not chosen or not all(np.isfinite(measure.statistic(*of)) for of in columns.values()):
            continue
        first, *rest = columns
        report[measure.name] = {
            "better": measure.better,
            **{who: {"n": len(chosen), **estimate(measure, of)} for who, of in columns.items()},
            **{f"difference_to_{who}": difference(measure, columns[first], columns[who]) for who in rest},
        }
    return report


def estimate(measure: Measure, columns: Column) -> dict[str, float]:
    """columns: [columns, items]."""
    if not measure.rate:
        return _interval(measure.statistic(*columns), measure.statistic(*_resampled(columns)))
    successes, n = int(columns.sum()), columns.shape[-1]
    bounds = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return {"mean": successes / n, "low": float(bounds.low), "high": float(bounds.high)}


def difference(measure: Measure, one: Column, other: Column) -> dict[str, float]:
    """Of one's statistic and the other's on the same items."""
    both = _resampled(np.concatenate([one, other]))
    return _interval(
        measure.statistic(*one) - measure.statistic(*other),
        measure.statistic(*both[: len(one)]) - measure.statistic(*both[len(one) :]),
    )


def _resampled(columns: Column) -> Column:
    """[columns, resamples, items]: each resample draws as many items as there are, the same for all columns."""
    n = columns.shape[-1]
    return columns[:, np.random.default_rng(0).integers(0, n, (RESAMPLES, n))]


def _interval(value: Column, resampled: Column) -> dict[str, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return {"mean": float(value), "low": float(low), "high": float(high)}
