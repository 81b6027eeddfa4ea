"""Reads of comparisons with outside models."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist, fmean
from typing import Any
from uuid import UUID

from django.db.models import Count, Q, QuerySet
from rest_framework.exceptions import NotFound

from apps.training.models import Comparison, Pairing, Verdict
from apps.users.models import User
from lyo import env

POINTS = {Verdict.OURS: 1.0, Verdict.TIE: 0.5, Verdict.THEIRS: 0.0}
Z = NormalDist().inv_cdf(0.975)


def settings_missing(*names: str) -> list[str]:
    """Which of these settings, without which there is no outside model or judge, are not set."""
    return [f"LYO_{name}" for name in names if not getattr(env, name)]


def comparison_list() -> QuerySet[Comparison]:
    """Newest first, each with `pairings_count` and `answered_count`."""
    answered = Count("pairings", filter=Q(pairings__answered_at__isnull=False))
    comparisons = Comparison.objects.select_related("adapter", "job", "evaluation_set")
    return comparisons.annotate(pairings_count=Count("pairings"), answered_count=answered)


def comparison_get(*, comparison_id: UUID) -> Comparison:
    """Raises `NotFound`."""
    comparison = comparison_list().filter(id=comparison_id).first()
    if comparison is None:
        raise NotFound
    return comparison


def pairing_next(*, comparison: Comparison, user: User) -> Pairing | None:
    """The next pairing on which this person has not voted."""
    answered = comparison.pairings.filter(answered_at__isnull=False)
    return answered.exclude(votes__user=user).order_by("position").first()


@dataclass(frozen=True)
class WinRate:
    """How often ours is preferred, a tie counting half, with Wilson's 95% interval, which ties make a little wide.

    Where several people voted on a pairing, it counts once, by their mean.
    """

    n: int
    wins: int
    ties: int
    losses: int
    win_rate: float
    low: float
    high: float

    @classmethod
    def of(cls, points: list[float]) -> "WinRate":
        """points: of each pairing, 0 to 1; there is at least one."""
        n, p = len(points), fmean(points)
        middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        spread = Z / (1 + Z * Z / n) * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        wins, losses = sum(point > 0.5 for point in points), sum(point < 0.5 for point in points)
        return cls(n, wins, n - wins - losses, losses, p, middle - spread, middle + spread)


def comparison_results(comparison: Comparison) -> dict[str, dict[str, Any] | None]:
    """The win rate by the judging `model` and by `people`; None where nothing is judged."""
    verdicts = comparison.pairings.exclude(verdict="").values_list("verdict", flat=True)
    votes: dict[int, list[float]] = defaultdict(list)
    for pairing, verdict in comparison.pairings.exclude(votes=None).values_list("id", "votes__verdict"):
        votes[pairing].append(POINTS[Verdict(verdict)])
    judged = {
        "model": [POINTS[Verdict(verdict)] for verdict in verdicts],
        "people": [fmean(points) for points in votes.values()],
    }
    return {who: asdict(WinRate.of(points)) if points else None for who, points in judged.items()}
