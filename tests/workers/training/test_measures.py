"""Measures on replies made by hand: what they are worth, and how sure of it one can be."""

import math
from typing import Any

import numpy as np
import pytest

from workers.protocols import Refused
from workers.scoring.number import number_expected
from workers.training.arithmetic import calculates, concludes, numbers, states
from workers.training.measures import MEASURES, Item, Reply, auc, calibration_error, compare, grade, is_path, suits

QUESTION = {"role": "user", "content": "Tom has 3 apples and buys 4. How many has he?"}


def item(**fields: Any) -> Item:
    return Item.of({"messages": [QUESTION, {"role": "assistant", "content": "He has 7."}], **fields})


def measured(items: list[Item], **replies: list[Reply]) -> dict[str, Any]:
    return compare(items, replies)


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It costs $1,200.00 now", "1200", True),
        ("So the answer is 72.", "72", True),
        ("#### 72", "72", True),
        ("It is 720.", "72", False),
        ("About 1/2 of it", "0.5", True),
        ("Look at 12/4 first", "3", False),
        ("x = -5", "5", False),
        ("version 7.2.1", "7", False),
    ],
)
def test_a_number_is_stated_in_any_notation_and_only_itself(text: str, answer: str, found: bool) -> None:
    assert states(text, answer) is found


def test_the_last_number_is_the_conclusion() -> None:
    assert concludes("3 + 4 = 7", "7")
    assert not concludes("7 is wrong, it is 8", "7")
    assert concludes("The capital is Paris.", "Paris")
    assert [str(number) for number in numbers("2 1/2 cups and -3")] == ["5/2", "-3"]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("48/2 = 24 and 48 + 24 = 72", True),
        ("48 + 24 = 71", False),
        ("10 / 3 = 3.33", True),
        ("10 / 3 = 3.4", False),
        ("2 + 3 * 4 = 14", True),
        ("5 / 0 = 1", False),
        ("no numbers", True),
        ("9**9**9**9 = 5", True),
    ],
)
def test_calculations_are_checked(text: str, right: bool) -> None:
    assert calculates(text) is right


def test_rates_and_their_intervals() -> None:
    items = [item(answer="7") for _ in range(10)]
    good, bad = Reply(-2.0, 4, "It is 7.", ended=True), Reply(-8.0, 4, "It is 8", ended=False)
    report = measured(items, candidate=[good] * 8 + [bad] * 2, base=[bad] * 10)
    assert report["exact_match"]["candidate"]["mean"] == 0.8
    assert report["exact_match"]["candidate"]["low"] == pytest.approx(0.4902, abs=1e-4)  # Wilson's of 8 in 10
    assert report["exact_match"]["candidate"]["high"] == pytest.approx(0.9433, abs=1e-4)
    assert report["exact_match"]["base"] == {"n": 10, "mean": 0.0, "low": 0.0, "high": pytest.approx(0.2775, abs=1e-4)}
    assert report["turn_end"]["candidate"]["mean"] == 0.8
    assert report["nll"]["candidate"]["mean"] == pytest.approx((8 * 2 + 2 * 8) / 40)
    assert report["nll"]["difference_to_base"]["mean"] == pytest.approx(0.8 - 2.0)
    assert report["nll"]["difference_to_base"]["high"] < 0 < report["exact_match"]["difference_to_base"]["low"]
    assert "answer_leak" not in report


def test_a_hint_leaks_only_what_was_not_in_the_question() -> None:
    leaky, silent = Reply(0, 1, "It is 7, you see."), Reply(0, 1, "Add 3 and 4.")
    given = item(answer="3", hint=True)  # the question says it itself
    report = measured(
        [item(answer="7", hint=True), item(answer="7", hint=True), given], candidate=[leaky, silent, leaky]
    )
    assert report["answer_leak"]["candidate"]["n"] == 2
    assert report["answer_leak"]["candidate"]["mean"] == 0.5
    assert "exact_match" not in report


def test_readability_is_of_the_level() -> None:
    easy = "The sky is blue. Air bends the light."
    hard = (
        "Electromagnetic radiation experiences wavelength-dependent scattering attributable to atmospheric molecules."
    )
    assert grade(easy) < 2 < 14 < grade(hard)
    assert suits(easy, "beginner")
    assert not suits(hard, "advanced")
    assert not suits("...", "beginner")


def test_engagement_is_ranked_and_calibrated() -> None:
    predicted, expected = np.array([0.9, 0.8, 0.3, 0.2]), np.array([1.0, 0.0, 1.0, 0.0])
    assert auc(predicted, expected) == 0.75
    assert calibration_error(predicted, expected) == pytest.approx((0.1 + 0.8 + 0.7 + 0.2) / 4)
    sure = [[-math.inf] * 10 for _ in range(12)]
    sure[0][0] = 0.0  # begins with 0
    sure[1][8] = 0.0  # then 8
    sure[2 + 8][7] = 0.0  # then 7
    with np.errstate(invalid="ignore"):
        spread = [[math.log(0.1)] * 10 if all(math.isinf(x) for x in row) else row for row in sure]
    assert number_expected(spread) == pytest.approx(0.87)


def test_a_learning_path_has_distinct_steps_about_as_many_as_the_reference() -> None:
    reference = ("Week 1: Python", "Week 2: Statistics")
    assert is_path(Reply(text="Learn sets\nLearn sums", ended=True), reference)
    assert not is_path(Reply(text="Learn sets\nlearn sets", ended=True), reference)
    assert not is_path(Reply(text="a\nb\nc\nd\ne", ended=True), reference)
    assert not is_path(Reply(text="Learn sets\nLearn sums", ended=False), reference)


def test_the_intent_of_a_query_is_what_the_reply_begins_with() -> None:
    items = [item(intent="define")] * 4
    texts = ("define, biology, any", " define", "defined, biology, any", "explain, define")
    report = compare(items, {"candidate": [Reply(text=text, ended=True) for text in texts]})
    assert report["intent"]["candidate"]["mean"] == 0.5


def test_an_item_is_checked() -> None:
    with pytest.raises(Refused, match="unknown field 'x'"):
        item(x=1)
    with pytest.raises(Refused, match="level 'easy' is not one of"):
        item(level="easy")


def test_the_web_knows_the_same_measures() -> None:
    from apps.training.models import Measure

    assert set(Measure.values) == {measure.name for measure in MEASURES}
