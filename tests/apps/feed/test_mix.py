"""The order of a feed, of entries alone."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from apps.feed.entries import Entry
from apps.feed.mix import mixed

WEIGHTS = {
    **dict.fromkeys(("interest", "level", "educational", "quality", "freshness", "trend"), 0.0),
    "engagement": 1.0,
    "same_subject": 0.1,
    "same_author": 0.1,
}


def entry(name: str, engagement: float, *, subject: str = "math", teaches: bool = True, **rest: object) -> Entry:
    return Entry(name, subject, teaches=teaches, parts={"engagement": engagement}, **rest)  # type: ignore[arg-type]


def order(entries: list[Entry], share: float = 1.0) -> list[str]:
    return [entry.item for entry in mixed(entries, WEIGHTS, share)]


def test_the_best_come_first_and_their_subject_counts_against_the_next() -> None:
    entries = [entry("a", 0.9), entry("b", 0.85), entry("c", 0.84, subject="physics"), entry("d", 0.5)]
    assert order(entries) == ["a", "c", "b", "d"]


def test_an_author_counts_as_a_subject_does() -> None:
    entries = [
        entry("a", 0.9, subject="math", author="Tess"),
        entry("b", 0.85, subject="physics", author="Tess"),
        entry("c", 0.8, subject="chemistry", author="Sid"),
    ]
    assert order(entries) == ["a", "c", "b"]


def test_the_share_that_teaches_is_kept_from_the_first_entry_on() -> None:
    entries = [entry(f"l{n}", 0.5) for n in range(20)] + [entry(f"f{n}", 0.9, teaches=False) for n in range(20)]
    shown = [name[0] for name in order(entries, share=0.75)]
    assert [shown[:length].count("l") for length in (4, 8, 12, 16)] == [3, 6, 9, 12]


def test_shares_of_all_and_nothing_leave_the_other_out() -> None:
    entries = [entry("l", 0.5), entry("f", 0.9, teaches=False)]
    assert (order(entries, share=1.0), order(entries, share=0.0)) == (["l"], ["f"])


def test_what_is_tried_has_the_seventh_place_of_ten() -> None:
    entries = [entry(f"l{n:02}", 1 - n / 100) for n in range(20)]
    entries += [entry(f"t{n}", 0, propensity=0.1) for n in range(3)]
    shown = order(entries)
    assert [place for place, name in enumerate(shown) if name[0] == "t"] == [6, 16, 22]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=40),
    st.floats(0, 1),
)
def test_every_entry_that_is_wanted_comes_once(made: list[tuple[float, str, bool, bool]], share: float) -> None:
    entries = [
        entry(str(n), score, subject=subject, teaches=teaches, propensity=0.5 if tried else 1.0)
        for n, (score, subject, teaches, tried) in enumerate(made)
    ]
    wanted = [one.item for one in entries if (share > 0 if one.teaches else share < 1)]
    assert sorted(order(entries, share)) == sorted(wanted)


def test_a_beginning_does_not_depend_on_how_far_one_reads() -> None:
    entries = [entry(str(n), n % 7 / 7, subject="abc"[n % 3], teaches=n % 4 > 0) for n in range(60)]
    assert [e.item for e in islice(mixed(entries, WEIGHTS, 0.8), 20)] == order(entries, 0.8)[:20]
