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
from apps.training.models.evaluations import Evaluation
from apps.training.models.runs import Run, RunCheckpoint, RunEvent, RunState
from apps.training.models.schedules import Schedule, Slot

__all__ = [
    "Collection",
    "DataSetVersion",
    "Evaluation",
    "EvaluationItem",
    "EvaluationSet",
    "Example",
    "File",
    "Immutable",
    "Member",
    "Review",
    "Run",
    "RunCheckpoint",
    "RunEvent",
    "RunState",
    "Schedule",
    "Slot",
    "Split",
    "State",
]
