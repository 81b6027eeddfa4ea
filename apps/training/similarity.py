"""When two problems or examples are the same, or nearly: normalised hashes, and MinHash over word trigrams.

MinHash with bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4) finds the few that may be alike;
whether they are, the trigrams themselves decide. Texts whose numbers differ are never alike: they are other problems.
"""

import re
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b, sha256
from typing import Generic, TypeVar

from rensa import RMinHash

from apps.training.formats import Format, Record, parts_of, questions_of

T = TypeVar("T", bound=Hashable)
COMPARED = 50  # others, with which one example or problem is compared
ALIKE = 0.8  # Jaccard similarity of trigrams
BANDS, ROWS = 20, 6  # of those at ALIKE, 99.8% share a band; of those at half of it, 8%
TOKEN = re.compile(r"\w+|[-+*/^=<>%]")
SEED = 1  # part of what is stored, like the version of rensa


def normalised(text: str) -> list[str]:
    """Words, numbers and operators, without case, punctuation and layout."""
    return TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def problem_hash(text: str) -> str:
    return sha256(" ".join(normalised(text)).encode()).hexdigest()


@dataclass(frozen=True)
class Sketch:
    """A text as the set of its trigrams and the numbers in it, in order."""

    tokens: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Sketch":
        return cls(tuple(normalised(text)))

    @cached_property
    def numbers(self) -> list[str]:
        return [token for token in self.tokens if token.isdecimal()]

    @cached_property
    def trigrams(self) -> set[str]:
        last = max(len(self.tokens) - 2, 1)
        return {" ".join(self.tokens[start : start + 3]) for start in range(last)}

    def bands(self, kind: str = "") -> list[int]:
        """`BANDS` signed 64-bit numbers, of which alike texts of one kind most likely share one, and others hardly."""
        minhash = RMinHash(num_perm=BANDS * ROWS, seed=SEED)
        minhash.update(sorted(self.trigrams))
        values = minhash.digest()
        rows = (values[band * ROWS : (band + 1) * ROWS] for band in range(BANDS))
        return [_hash(f"{kind} {self.numbers} {band} {row}") for band, row in enumerate(rows)]

    def is_alike(self, other: "Sketch") -> bool:
        shared = len(self.trigrams & other.trigrams)
        return self.numbers == other.numbers and shared >= ALIKE * len(self.trigrams | other.trigrams)


def example_bands(format_: str, record: Record) -> list[int]:
    """Of the last question and its answer; none where a small difference is all that matters."""
    if format_ in (Format.ENGAGEMENT, Format.QUERY):
        return []
    parts = parts_of(format_, record)
    return Sketch.of(f"{parts.question}\n{parts.answer}").bands(kind=_kind(format_, record))


@dataclass(frozen=True)
class ExampleSketch:
    """The question, the answer and the kind of an example: an answer that was liked is not one that was not."""

    kind: str
    question: Sketch
    answer: Sketch

    @classmethod
    def of(cls, format_: str, record: Record) -> "ExampleSketch":
        parts = parts_of(format_, record)
        return cls(_kind(format_, record), Sketch.of(parts.question), Sketch.of(parts.answer))

    def is_alike(self, other: "ExampleSketch") -> bool:
        """Whether the questions are alike and the answers too."""
        return self.kind == other.kind and self.question.is_alike(other.question) and self.answer.is_alike(other.answer)


class ByBand(Generic[T]):
    """What may be like something, found by bands; at most `COMPARED`, those first that share most bands.

    One question with ever different answers shares bands with all of its like, and is never alike: without a bound each
    line of such a file would be compared with all lines before it.
    """

    def __init__(self) -> None:
        self._found: dict[int, deque[T]] = defaultdict(lambda: deque(maxlen=COMPARED))

    def add(self, bands: Iterable[int], value: T) -> None:
        for band in bands:
            self._found[band].append(value)

    def candidates(self, bands: Iterable[int]) -> list[T]:
        shared = Counter(value for band in bands for value in self._found.get(band, ()))
        return [value for value, _ in shared.most_common(COMPARED)]


def problems_of(format_: str, record: Record) -> list[str]:
    """Everything in an example that could be a problem of an evaluation."""
    return questions_of(record) if "messages" in record else [parts_of(format_, record).problem]


def _kind(format_: str, record: Record) -> str:
    return f"{format_} {record.get('liked', '')}"


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), signed=True)
