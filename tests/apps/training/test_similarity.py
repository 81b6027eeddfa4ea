from apps.training.formats import Record
from apps.training.similarity import (
    BANDS,
    COMPARED,
    ByBand,
    ExampleSketch,
    Sketch,
    example_bands,
    normalised,
    problem_hash,
)
from tests.apps.training.conftest import chat

WORDS = "the quick brown fox jumps over the lazy dog while a small grey cat sleeps under an old oak tree and dreams"


def shared(one: str, other: str) -> int:
    return len(set(Sketch.of(one).bands()) & set(Sketch.of(other).bands()))


def test_layout_case_and_punctuation_do_not_count_but_numbers_and_operators_do() -> None:
    assert normalised("What IS\n 2+2 ?  \uff13") == ["what", "is", "2", "+", "2", "3"]
    assert problem_hash("What is 2 + 2?") == problem_hash("what is 2+2")
    assert problem_hash("2 + 2") != problem_hash("2 - 2")
    assert problem_hash("2 + 2") != problem_hash("2 + 3")


def test_a_changed_word_leaves_texts_alike_and_another_text_is_not() -> None:
    changed = WORDS.replace("dreams", "snores")  # 19 of 20 trigrams are the same
    assert Sketch.of(WORDS).is_alike(Sketch.of(changed))
    assert shared(WORDS, changed) >= 1
    reordered = " ".join(reversed(WORDS.split()))
    assert not Sketch.of(WORDS).is_alike(Sketch.of(reordered))
    assert shared(WORDS, reordered) == 0
    assert shared(WORDS, WORDS.upper()) == BANDS


def test_other_numbers_make_another_problem() -> None:
    one, other = f"{WORDS} 12 times", f"{WORDS} 13 times"
    assert not Sketch.of(one).is_alike(Sketch.of(other))
    assert shared(one, other) == 0


def test_bands_are_the_same_in_every_process_and_fit_postgres() -> None:
    assert Sketch.of("two plus two").bands()[:2] == [5465327481389922056, 2437011970500660707]
    assert all(-(2**63) <= band < 2**63 for band in Sketch.of(WORDS).bands())


def test_texts_shorter_than_a_trigram_have_bands() -> None:
    assert shared("yes", "Yes!") == BANDS
    assert shared("yes", "no") == 0
    assert shared("", "...") == BANDS


def test_examples_are_alike_in_question_and_answer() -> None:
    question = f"{WORDS}?"
    assert examples_alike("chat", chat(question, WORDS), chat(question.upper(), f"{WORDS}!"))
    assert not examples_alike("chat", chat(question, WORDS), chat(question, "Something else."))
    assert not examples_alike("chat", chat("Something else?", WORDS), chat(question, WORDS))


def test_a_liked_answer_is_not_like_a_disliked_one() -> None:
    up, down = ({**chat(WORDS, WORDS), "liked": liked} for liked in (True, False))
    assert not examples_alike("thumb", up, down)
    assert not set(example_bands("thumb", up)) & set(example_bands("thumb", down))


def examples_alike(format_: str, one: Record, other: Record) -> bool:
    return ExampleSketch.of(format_, one).is_alike(ExampleSketch.of(format_, other))


def test_candidates_are_bounded_and_those_that_share_most_come_first() -> None:
    found: ByBand[str] = ByBand()
    for number in range(1000):
        found.add(range(3), f"far {number}")
    found.add(range(2, 10), "near")
    candidates = found.candidates(range(10))
    assert candidates[0] == "near"
    assert len(candidates) == len(set(candidates)) == COMPARED
    assert found.candidates([77]) == []
