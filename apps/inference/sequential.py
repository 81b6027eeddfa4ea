"""Whether one of two rates is the higher, by a test that stays valid however often it is looked at.

The likelihood of an arm's outcomes, averaged over all rates, divided by that under its true rate is a martingale of
mean 1, and so is the product of both arms', in whatever order their outcomes come. Its least value over all rates that
a hypothesis allows therefore exceeds 1 / alpha at any time with a probability of alpha at most (Ville's inequality).
Mixtures: Howard et al., arXiv:1810.08240; two arms: Turner, Ly and Grünwald, arXiv:2106.02693.

That holds for outcomes that are independent draws at one rate, each fixed once it is counted. The answers of one person
are not: who asks a hundred times meets the same trouble a hundred times. So the draw is a person, and its value is that
of the first outcome that they had of an arm. Later ones add nothing and change nothing: neither how much somebody asks
nor when we look decides what is counted. An outcome that says nothing of the model (the caller's own error, a deadline,
a lack of room) is left out of both arms alike: the rate is one among answers that could have been given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, lgamma, log

NARROWINGS = 60  # of an interval by a third: to 3e-11 of its length
HALVINGS = 20


@dataclass(frozen=True, slots=True)
class Arm:
    """How many outcomes there were, and how many of them were bad."""

    n: int
    bad: int

    @property
    def rate(self) -> float | None:
        return self.bad / self.n if self.n else None

    def log_ratio(self, rate: float) -> float:
        """Log of the mixture's likelihood over that of `rate`. Convex in `rate`, least at the observed one."""
        good = self.n - self.bad
        mixture = lgamma(self.bad + 1) + lgamma(good + 1) - lgamma(self.n + 2)
        return mixture - _times_log(self.bad, rate) - _times_log(good, 1 - rate)


def log_evidence(live: Arm, canary: Arm, margin: float, ceiling: float = 1.0) -> float:
    """Log of the e-value against "the canary's rate is at most `margin` above live's, and live's at most `ceiling`"."""
    observed = canary.rate or 0.0

    def least(rate: float) -> float:
        """Where live's rate is `rate`."""
        return live.log_ratio(rate) + canary.log_ratio(min(observed, rate + margin))

    return _minimum(least, max(0.0, -margin), ceiling)


def difference(live: Arm, canary: Arm, alpha: float) -> tuple[float, float]:
    """Confidence sequence of the canary's rate less live's: each end is ever wrong with a probability of `alpha`."""
    return _lowest_difference(live, canary, alpha), -_lowest_difference(canary, live, alpha)


def _lowest_difference(live: Arm, canary: Arm, alpha: float) -> float:
    low, high = -1.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if log_evidence(live, canary, middle) >= -log(alpha):
            low = middle
        else:
            high = middle
    return low


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Of a convex function between two places."""
    for _ in range(NARROWINGS):
        third = (high - low) / 3
        if function(low + third) < function(high - third):
            high -= third
        else:
            low += third
    return function((low + high) / 2)


def _times_log(count: int, value: float) -> float:
    """count * log(value), with 0 * log(0) = 0."""
    if count == 0:
        return 0.0
    return count * log(value) if value > 0 else -inf
