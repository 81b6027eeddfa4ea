"""Reads of evaluations, their items and their gates, for those who train models."""

from collections.abc import Iterator
from itertools import islice
from typing import Any
from uuid import UUID

from django.db.models import Count, QuerySet
from rest_framework.exceptions import NotFound

from apps.inference.models import Adapter
from apps.training.formats import Record, evaluation_form
from apps.training.models import (
    DataSetVersion,
    Evaluation,
    EvaluationItem,
    EvaluationSet,
    Example,
    Gate,
    Member,
    Split,
)

HELD_OUT = 300  # examples of a data set version's validation part, where no limit is given: enough for a verdict


def evaluation_list(**filters: Any) -> QuerySet[Evaluation]:
    """Newest first, by `adapter` or `task`."""
    return Evaluation.objects.filter(**filters).select_related("adapter", "job")


def evaluation_get(*, evaluation_id: UUID) -> Evaluation:
    """Raises `NotFound`."""
    evaluation = evaluation_list(id=evaluation_id).first()
    if evaluation is None:
        raise NotFound
    return evaluation


def evaluation_latest(*, adapter: Adapter, task: str, subject: str = "") -> Evaluation | None:
    """The last evaluation of the adapter for a task that has ended with a verdict."""
    ended = Evaluation.objects.filter(adapter=adapter, task=task, subject=subject, passed__isnull=False)
    return ended.order_by("-created_at").first()


def evaluation_set_list() -> QuerySet[EvaluationSet]:
    """Newest first, each with its `items_count`."""
    return EvaluationSet.objects.order_by("-created_at", "-id").annotate(items_count=Count("items"))


def evaluation_records(evaluation: Evaluation) -> tuple[dict[str, Any], list[Record]]:
    """Where the problems are from, by name, and the records of them (see `formats.evaluation_form`).

    They are those of the task's evaluation sets, each in its latest version. Where there is none they are the
    validation part of what the adapter was trained on, which it has not learnt from.
    """
    latest = EvaluationSet.objects.filter(task=evaluation.task).order_by("name", "-version").distinct("name")
    sources: dict[str, Any] = {}
    records: list[Record] = []
    for found in latest:
        items = EvaluationItem.objects.filter(evaluation_set=found).order_by("position").iterator()
        taken = list(islice(_usable((i.format, i.content, i.marks) for i in items), evaluation.limit))
        sources[found.name] = {"kind": "evaluation set", "version": str(found.version), "items": len(taken)}
        records += taken
    if records:
        return sources, records
    held_out = list(islice(_held_out(evaluation), evaluation.limit or HELD_OUT))
    digest = evaluation.adapter.dataset_version
    source = {"kind": "validation part of the data set version", "version": digest, "items": len(held_out)}
    return ({"validation": source} if held_out else {}), held_out


def _held_out(evaluation: Evaluation) -> Iterator[Record]:
    version = DataSetVersion.objects.filter(digest=evaluation.adapter.dataset_version, erased_at=None).first()
    members = Member.objects.filter(version=version, split=Split.VALIDATION).values("hash")
    examples = Example.objects.filter(hash__in=members, task=evaluation.task).order_by("hash")
    return _usable(examples.values_list("format", "content").iterator()) if version else iter(())


def _usable(items: Any) -> Iterator[Record]:
    return (record for item in items if (record := evaluation_form(*item)))


def gate_list(*, task: str) -> QuerySet[Gate]:
    return Gate.objects.filter(task=task)
