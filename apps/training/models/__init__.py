from apps.training.models.comparisons import Comparison, Pairing, Verdict, Vote
from apps.training.models.data import (
    Collection,
    DataSetVersion,
    EvaluationItem,
    EvaluationSet,
    Example,
    File,
    Immutable,
    Member,
    Review,
    Split,
    State,
)
from apps.training.models.evaluations import Evaluation, Gate, Measure
from apps.training.models.runs import Run, RunCheckpoint, RunEvent, RunState
from apps.training.models.schedules import Schedule, Slot

__all__ = [
    "Collection",
    "Comparison",
    "DataSetVersion",
    "Evaluation",
    "EvaluationItem",
    "EvaluationSet",
    "Example",
    "File",
    "Gate",
    "Immutable",
    "Measure",
    "Member",
    "Pairing",
    "Review",
    "Run",
    "RunCheckpoint",
    "RunEvent",
    "RunState",
    "Schedule",
    "Slot",
    "Split",
    "State",
    "Verdict",
    "Vote",
]
