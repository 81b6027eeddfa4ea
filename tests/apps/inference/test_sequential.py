"""The sequential test keeps its promises under looks after every outcome."""

from collections.abc import Iterator
from math import exp, log
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.inference.sequential import Arm, difference, log_evidence

ALPHA = 0.05
ENOUGH = -log(ALPHA)


def trial(live_rate: float, canary_rate: float, share: float, seed: int) -> Iterator[tuple[Arm, Arm]]:
    """The arms after each outcome."""
    random = Random(seed)
    counts = {"live": [0, 0], "canary": [0, 0]}
    while True:
        name, rate = ("canary", canary_rate) if random.random() < share else ("live", live_rate)
        counts[name][0] += 1
        counts[name][1] += random.random() < rate
        yield Arm(*counts["live"]), Arm(*counts["canary"])


def rejected_after(live_rate: float, canary_rate: float, share: float, seed: int, limit: int) -> int | None:
    """Outcomes of the canary until it is found worse by more than 0.05, looked at after each; None within `limit`."""
    for _, (live, canary) in zip(range(limit), trial(live_rate, canary_rate, share, seed), strict=False):
        if log_evidence(live, canary, 0.05) >= ENOUGH:
            return canary.n
    return None


@pytest.mark.parametrize(("live_rate", "share"), [(0.02, 0.2), (0.3, 0.5), (0.9, 0.5)])
def test_a_canary_at_the_margin_is_seldom_rolled_back_however_often_it_is_looked_at(
    live_rate: float, share: float
) -> None:
    wrong = sum(rejected_after(live_rate, live_rate + 0.05, share, seed, limit=150) is not None for seed in range(60))
    assert wrong <= 60 * ALPHA


def test_without_live_the_chance_of_a_wrong_rejection_is_below_alpha_exactly() -> None:
    """By the distribution of failures among the trials that go on: no simulation."""
    rate = 0.2 + 0.05
    going_on, rejected = {0: 1.0}, 0.0
    for n in range(1, 301):
        after: dict[int, float] = {}
        for bad, chance in going_on.items():
            after[bad] = after.get(bad, 0.0) + chance * (1 - rate)
            after[bad + 1] = after.get(bad + 1, 0.0) + chance * rate
        stops = {bad for bad in after if bad > n * rate and Arm(n, bad).log_ratio(rate) >= ENOUGH}
        rejected += sum(after[bad] for bad in stops)
        going_on = {bad: chance for bad, chance in after.items() if bad not in stops}
    assert 0.001 < rejected <= ALPHA


@pytest.mark.parametrize(
    ("live_rate", "canary_rate", "share", "within"), [(0.01, 0.3, 0.1, 70), (0.01, 0.3, 0.5, 130), (0.0, 1.0, 0.1, 8)]
)
def test_a_broken_canary_is_caught_soon(live_rate: float, canary_rate: float, share: float, within: int) -> None:
    for seed in range(10):
        found = rejected_after(live_rate, canary_rate, share, seed, limit=1000)
        assert found is not None and found <= within


def test_live_without_outcomes_is_taken_for_the_ceiling() -> None:
    assert log_evidence(Arm(0, 0), Arm(100, 100), 0.05) < 0
    evidence = log_evidence(Arm(0, 0), Arm(4, 4), 0.05, ceiling=0.2)
    assert exp(evidence) == pytest.approx(1 / (5 * 0.25**4))
    assert log_evidence(Arm(0, 0), Arm(40, 8), 0.05, ceiling=0.2) < 0


def test_the_evidence_is_that_of_the_likeliest_pair_at_the_margin() -> None:
    live, canary = Arm(50, 2), Arm(40, 14)
    pairs = [live.log_ratio(p / 10_000) + canary.log_ratio(p / 10_000 + 0.05) for p in range(1, 9_500)]
    assert log_evidence(live, canary, 0.05) == pytest.approx(min(pairs), abs=1e-5)


arms = st.integers(0, 200).flatmap(lambda n: st.builds(Arm, st.just(n), st.integers(0, n)))


@given(arms, arms)
def test_the_confidence_sequence_holds_what_was_observed_and_turns_with_the_arms(live: Arm, canary: Arm) -> None:
    low, high = difference(live, canary, ALPHA)
    assert -1 <= low <= high <= 1
    if live.rate is not None and canary.rate is not None:
        assert low - 1e-5 <= canary.rate - live.rate <= high + 1e-5
    assert difference(canary, live, ALPHA) == (-high, -low)


@given(arms, arms, st.floats(0, 0.5))
def test_it_rejects_a_margin_just_where_the_confidence_sequence_leaves_it_below(
    live: Arm, canary: Arm, margin: float
) -> None:
    low, _ = difference(live, canary, ALPHA)
    if abs(low - margin) > 1e-5:
        assert (log_evidence(live, canary, margin) >= ENOUGH) == (low > margin)


def test_an_arm_without_outcomes_says_nothing() -> None:
    assert Arm(0, 0).rate is None
    assert difference(Arm(0, 0), Arm(0, 0), ALPHA) == pytest.approx((-1, 1), abs=1e-5)
