"""Whether a report lets an adapter go live. Pure functions."""

from collections.abc import Iterable, Mapping
from typing import Any

from apps.training.models import Gate

Figures = Mapping[str, Any]


def gate_decide(report: Figures, gates: Iterable[Gate]) -> list[str]:
    """Why the candidate is held back, a text for each gate that does so; it passes where there is none.

    A gate whose measure no item allowed says nothing. A report to which no gate applies holds the candidate back.
    """
    measures = report["measures"]
    applied = [(gate, measures[gate.measure]) for gate in gates if gate.measure in measures]
    if not applied:
        return [f"no gate judges what was measured ({', '.join(measures) or 'nothing'}): make one for the task"]
    return [failure for gate, measure in applied if (failure := _failure(gate, measure))]


def _failure(gate: Gate, measure: Figures) -> str | None:
    sign = 1 if measure["better"] == "higher" else -1
    candidate = f"{gate.measure} is {_shown(measure['candidate'])}"
    if gate.kind == Gate.Kind.BOUND:
        side = "least" if sign > 0 else "most"
        held = sign * measure["candidate"]["mean"] < sign * gate.value
        return f"{candidate}, and must be {gate.value:g} at {side}" if held else None
    live = "live" if gate.kind == Gate.Kind.NOT_WORSE_THAN_LIVE and measure["live"] else "base"
    difference = measure[f"difference_to_{live}"]
    worst = min(sign * difference["low"], sign * difference["high"])
    compared = (
        f"{candidate}, that of the {'live adapter' if live == 'live' else 'base model'} {_shown(measure[live])}: "
        f"a difference of {_shown(difference)}, where {measure['better']} is better; with 95% confidence it"
    )
    if gate.kind == Gate.Kind.NOT_WORSE_THAN_LIVE:
        return f"{compared} may be worse by {gate.value:g} at most" if worst < -gate.value else None
    return f"{compared} must be better by more than {gate.value:g}" if worst <= gate.value else None


def _shown(figures: Figures) -> str:
    return f"{figures['mean']:.3f} [{figures['low']:.3f}, {figures['high']:.3f}]"
