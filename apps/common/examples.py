"""The doors between the apps where learners do something and the app that makes training examples of it.

Neither side imports the other: those who observe register a source in `AppConfig.ready`, and say what a learner has
deleted; who learns of it reads the sources, and registers to be told.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from apps.common.constants import Subject, Task


@dataclass(frozen=True, slots=True)
class Observation:
    """Something that a learner did, in one of the formats of examples.

    `id` is of the row it came from; observed again with another `record` it replaces what was made of it before.
    `done_at` is when the learner did it, `changed_at` when the last was added, such as feedback.
    """

    id: UUID
    learner_id: UUID
    task: Task
    subject: Subject
    record: dict[str, Any]
    done_at: datetime
    changed_at: datetime


# The observations of these learners that changed from the first time to the second, in that order.
Source = Callable[[QuerySet[Any], datetime, datetime], Iterable[Observation]]

sources: dict[str, Source] = {}
_deletions: list[Callable[[str, Sequence[UUID]], object]] = []


def source_register(name: str, source: Source) -> None:
    """Have what `source` observes collected under `name`."""
    sources[name] = source


def deletion_register(forget: Callable[[str, Sequence[UUID]], object]) -> None:
    """Have `forget(source name, ids)` called, in the same transaction, when learners delete what was observed."""
    _deletions.append(forget)


def deleted(name: str, ids: Sequence[UUID]) -> None:
    """Tell that the rows of these ids, of the source of that name, are gone or no longer stand."""
    for forget in _deletions:
        forget(name, ids)
