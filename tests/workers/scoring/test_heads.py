"""What the shipped heads say of texts that they have not learnt from, by the packaged embedder."""

import numpy as np
import pytest

from workers.models.embedder import Embedder
from workers.scoring.heads import SHIPPED, Heads
from workers.scoring.text import FEATURES, features
from workers.scoring.topics import Topics

TEACHING = [
    "How a lever works\n\nA long arm lets a small force lift a load: force times distance is the same for both.",
    "The subjunctive in Spanish\n\nAfter words of wish or doubt the verb changes its ending: quiero que vengas.",
    "What is inflation?\n\nWhen prices rise on average, each euro buys less. Central banks raise rates to slow it.",
    "Volcanoes\n\nMagma rises, being lighter than the rock around it. Dissolved gas makes the eruption explosive.",
]
FUN = [
    "Ten cats that sing pop songs\n\nA funny video of cats singing chart hits.",
    "We let the internet choose our dinner\n\nYou voted for blue spaghetti. Watch until the end for Dad's face!",
    "My flatmate's shower concert\n\nHe does the guitar solo with his mouth. Every. Single. Morning.",
    "Unboxing the mystery crate\n\nThree rubber ducks, a cape, and something that glows. Like if you want part two!",
]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def vectors(embedder: Embedder, texts: list[str]) -> np.ndarray:
    return np.array(embedder.embed(texts).vectors, np.float32)


def test_what_teaches_is_told_from_what_entertains(embedder: Embedder) -> None:
    texts = [*TEACHING, *FUN]
    found = [one.educational >= 0.5 for one in Heads.load().judge(texts, vectors(embedder, texts))]
    assert found == [True] * len(TEACHING) + [False] * len(FUN)


def test_a_text_that_is_spoilt_is_of_less_quality(embedder: Embedder) -> None:
    whole = TEACHING[0]
    words = whole.split()
    spoilt = [" ".join(words[:4]), " ".join(sorted(words)), " ".join(words[:6]) * 8, whole.upper() + "!!!!!!"]
    best, *others = Heads.load().judge([whole, *spoilt], vectors(embedder, [whole, *spoilt]))
    assert best.quality > 0.5
    assert all(other.quality < best.quality for other in others)


def test_the_heads_are_small_and_known_by_their_digest() -> None:
    heads = Heads.load()
    assert SHIPPED.stat().st_size < 20_000
    assert len(heads.digest) == 64
    assert {name: weights.shape for name, weights in heads.weights.items()} == {
        "educational": (385,),
        "quality": (len(FEATURES) + 1,),
        "level": (3, 384 + len(FEATURES) + 1),
    }


@pytest.mark.parametrize("text", ["", " ", "!!!", "0" * 5000, "\u202e\u0000", "🙂" * 50, "a " * 10_000])
def test_any_text_can_be_counted(text: str) -> None:
    assert np.isfinite(features(text)).all()


def test_topics_are_those_of_the_subject_the_likest_first() -> None:
    units = np.eye(4, dtype=np.float32)
    topics = Topics(("math-a", "math-b", "math-c", "art-a"), ("math", "math", "math", "art"), units)
    vector = np.array([0.4, 0.8, 0.1, 0.9], np.float32)
    assert topics.alike(vector, "math") == ["math-b", "math-a"]  # c is too little alike
    assert topics.alike(vector, "general") == ["art-a", "math-b", "math-a"]  # none are its own
    assert Topics((), (), np.zeros((0, 1), np.float32)).alike(vector, "math") == []
