"""The vocabulary of published content, by which slips of the pen are seen and mended."""

import math
import re
import time
from dataclasses import dataclass
from threading import Lock

from django.core.cache import caches
from rapidfuzz import process
from rapidfuzz.distance import DamerauLevenshtein

from apps.content.models import Item, Status
from apps.search.models import Word

WORD = re.compile(r"[^\W\d_]{5,}")  # shorter ones are too like others
PART = re.compile(r"[^\W_]+")
MENDED = 32  # words of a text that are looked up
REFRESH_S = 30.0
COUNTED_S = 10  # how old the number of items may be
EDITS = {5: 1, 7: 2, 10: 3}  # that a word of so many letters may have
FAMILIAR = ("ph", "f"), ("ck", "k"), ("qu", "kw"), ("x", "ks"), ("th", "t"), ("y", "i"), ("c", "k"), ("z", "s")


@dataclass(frozen=True)
class Vocabulary:
    """documents: of each word, in how many items it is. sounds: the same words, spelt nearly as they sound."""

    documents: dict[str, int]
    sounds: dict[str, str]

    def corrected(self, text: str) -> str:
        """The text with each word that nobody wrote replaced by the likeliest one that somebody did; of a long text,
        the first words."""
        return WORD.sub(lambda found: self._nearest(found[0].lower()) or found[0], text, count=MENDED)

    def knows(self, text: str) -> bool:
        """Whether somebody has published each word of it, however short."""
        return all(word in self.documents for word in PART.findall(text.lower()))

    def _nearest(self, word: str) -> str | None:
        """Of the fewest edits in how the words sound; of several the one in most items. None: it is right, or no word
        is near enough."""
        if word in self.documents or not self.documents:
            return None
        most = max(edits for length, edits in EDITS.items() if len(word) >= length)
        found = process.extract(
            sound(word), self.sounds, scorer=DamerauLevenshtein.distance, score_cutoff=most, limit=10
        )
        return min(found, key=lambda one: (one[1], -self.documents[one[2]]))[2] if found else None


def sound(word: str) -> str:
    for written, heard in FAMILIAR:
        word = word.replace(written, heard)
    return word


_kept = Vocabulary({}, {})
_read_at = float("-inf")
_lock = Lock()


def vocabulary() -> Vocabulary:
    """As each process has read it, half a minute ago at most."""
    global _kept, _read_at
    with _lock:
        if time.monotonic() - _read_at > REFRESH_S:
            documents = dict(Word.objects.filter(form=Word.Form.WRITTEN).values_list("word", "documents"))
            _kept = Vocabulary(documents, {word: sound(word) for word in documents})
            _read_at = time.monotonic()
    return _kept


def forget() -> None:
    """Have the vocabulary read anew."""
    global _read_at
    _read_at = float("-inf")


def idf(stems: list[str]) -> dict[str, float]:
    """How much each stem tells; those that are nowhere are left out."""
    found = Word.objects.filter(form=Word.Form.STEM, word__in=stems).values_list("word", "documents")
    published = Item.objects.filter(status=Status.PUBLISHED)
    total = caches["process"].get_or_set("search.published", published.count, COUNTED_S) or 0
    return {word: inverse_frequency(documents, total) for word, documents in found}


def inverse_frequency(documents: int, total: int) -> float:
    """The rarest tells most (Robertson and Spärck Jones, as BM25 has it)."""
    return math.log(1 + (max(total, documents) - documents + 0.5) / (documents + 0.5))
