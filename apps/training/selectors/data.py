"""Reads of files, examples, data set versions and evaluation sets, for those who train models."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from uuid import UUID

from django.db.models import Count, Model, Q, QuerySet
from rest_framework.exceptions import NotFound

from apps.common.errors import Conflict
from apps.common.streaming import paged
from apps.training.formats import Record, training_form
from apps.training.models import (
    Comparison,
    DataSetVersion,
    Evaluation,
    EvaluationItem,
    Example,
    File,
    Member,
    Review,
    Run,
    Split,
    Vote,
)
from apps.training.similarity import ByBand, Sketch, problems_of
from apps.users.models import User

PAGE = 500
PURPOSE = "fine-tune"  # the only one of OpenAI's that files have here

# --- files ---


def file_get(*, public_id: str) -> File:
    """Raises `NotFound`."""
    try:
        return File.objects.get(id=UUID(hex=public_id.removeprefix("file-")))
    except (ValueError, File.DoesNotExist) as error:
        raise NotFound(f"There is no file {public_id[:50]!r}.") from error


def file_chunks(file: File) -> Iterator[bytes]:
    """Open what was uploaded, and read it bit by bit; raises `NotFound` at once where it is not there."""
    try:
        return iter(file.content.open().chunks())
    except FileNotFoundError as error:
        raise NotFound(f"The content of the file {file.public_id!r} is missing.") from error


def file_list(*, limit: int, after: File | None = None, newest_first: bool = True) -> tuple[list[File], bool]:
    """Up to `limit` files that come after one, and whether there are more."""
    files = File.objects.order_by(*(("-created_at", "-id") if newest_first else ("created_at", "id")))
    if after is not None:
        side = "lt" if newest_first else "gt"
        beyond = Q(**{f"created_at__{side}": after.created_at})
        files = files.filter(beyond | Q(**{"created_at": after.created_at, f"id__{side}": after.id}))
    found = list(files[: limit + 1])
    return found[:limit], len(found) > limit


def file_data(file: File) -> dict[str, Any]:
    """A file as OpenAI's API shows it, with what Lyo knows beside."""
    return {
        "id": file.public_id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at.timestamp()),
        "filename": file.filename,
        "purpose": PURPOSE,
        "status": "processed",
        "format": file.format,
        "task": file.task,
        "subject": file.subject,
        "digest": file.digest,
        "statistics": file.statistics,
    }


# --- examples ---


def example_list(**filters: str) -> QuerySet[Example]:
    """Newest first, by `task`, `subject`, `format`, `state` or `source`."""
    return Example.objects.filter(**filters).defer("original", "bands")


def example_get(*, example_id: UUID, lock: bool = False) -> Example:
    """Raises `NotFound`. With `lock` nobody else changes it before the transaction ends."""
    examples = Example.objects.select_for_update() if lock else Example.objects
    example = examples.filter(id=example_id).first()
    if example is None:
        raise NotFound
    return example


def example_counts() -> list[dict[str, Any]]:
    """By task and subject: `pending`, `approved`, `rejected`."""
    states = {state: Count("id", filter=Q(state=state)) for state in ("pending", "approved", "rejected")}
    rows = Example.objects.order_by("task", "subject").values("task", "subject").annotate(**states)
    return [dict(row) for row in rows]


def example_export(user: User) -> Iterator[dict[str, Any]]:
    """What was collected from a learner: as it was observed, and as models see it."""
    fields = ("id", "task", "subject", "format", "state", "source", "consented_at", "created_at", "content", "original")
    return paged(Example.objects.filter(learner=user).values(*fields), "created_at", "id", size=20)


def training_export(user: User) -> dict[str, Any]:
    """What a member of the staff did with models and their data."""

    def rows(model: type[Model], *fields: str, by: str = "user") -> Iterator[dict[str, Any]]:
        of_user = model._default_manager.filter(**{by: user})
        return paged(of_user.values("id", "created_at", *fields), "created_at", "id")

    return {
        "reviews": rows(Review, "example", "decision", "note", by="reviewer"),
        "votes": rows(Vote, "pairing", "verdict"),
        "files": rows(File, "filename", "digest", "size"),
        "data_set_versions": rows(DataSetVersion, "digest", "method", "task", "subject"),
        "runs": rows(Run, "suffix", "state", "recipe", "metadata"),
        "evaluations": rows(Evaluation, "adapter", "task", "subject", "passed"),
        "comparisons": rows(Comparison, "adapter", "opponent", "task"),
    }


# --- reviewers ---


@dataclass(frozen=True)
class Agreement:
    """Of two reviewers, over the `n` examples that both decided on; an edit is an approval.

    `kappa` is Cohen's: 1 is full agreement, 0 what chance brings; None where chance alone would agree on all.
    """

    reviewers: tuple[str, str]
    n: int
    agreed: int
    kappa: float | None


def reviewer_agreement() -> list[Agreement]:
    """Each pair of reviewers that has examples in common, those with the most first."""
    decisions: dict[UUID, dict[str, bool]] = defaultdict(dict)
    rows = (
        Review.objects.filter(reviewer__isnull=False, example__in=_decided_twice())
        .order_by("reviewer__username")
        .values_list("example_id", "reviewer__username", "decision")
    )
    for example, reviewer, decision in rows.iterator():
        decisions[example][reviewer] = decision != Review.Decision.REJECT
    pairs: dict[tuple[str, str], list[tuple[bool, bool]]] = defaultdict(list)
    for by_reviewer in decisions.values():
        for one, other in combinations(by_reviewer, 2):
            pairs[one, other].append((by_reviewer[one], by_reviewer[other]))
    return sorted((_agreement(*pair) for pair in pairs.items()), key=lambda pair: -pair.n)


def _decided_twice() -> QuerySet[Any, Any]:
    decided = Review.objects.filter(reviewer__isnull=False).order_by().values("example")
    return decided.annotate(n=Count("id")).filter(n__gt=1).values("example")


def _agreement(reviewers: tuple[str, str], both: list[tuple[bool, bool]]) -> Agreement:
    n, agreed = len(both), sum(one == other for one, other in both)
    first, second = (sum(decision) / n for decision in zip(*both, strict=True))
    by_chance = first * second + (1 - first) * (1 - second)
    return Agreement(reviewers, n, agreed, (agreed / n - by_chance) / (1 - by_chance) if by_chance < 1 else None)


# --- evaluation sets ---


def evaluation_overlaps(examples: Sequence[Example]) -> list[EvaluationItem | None]:
    """For each example an item of an evaluation set whose problem it has too, or nearly; in one query.

    The same problem is found however many are like it.
    """
    sketches = [[Sketch.of(text) for text in problems_of(example.format, example.content)] for example in examples]
    bands = [[set(sketch.bands()) for sketch in of_one] for of_one in sketches]
    anywhere = list(set().union(*(of_text for of_one in bands for of_text in of_one)))
    items = EvaluationItem.objects.filter(bands__overlap=anywhere).select_related("evaluation_set")
    problems = {item: Sketch.of(item.problem) for item in items}
    same = {problem: item for item, problem in problems.items()}
    near: ByBand[EvaluationItem] = ByBand()
    for item in items:
        near.add(item.bands, item)

    def overlap(sketch: Sketch, of_text: set[int]) -> EvaluationItem | None:
        alike = (item for item in near.candidates(of_text) if sketch.is_alike(problems[item]))
        return same.get(sketch) or next(alike, None)

    return [next(filter(None, map(overlap, *pair)), None) for pair in zip(sketches, bands, strict=True)]


# --- data set versions ---


def version_get(*, version_id: UUID) -> DataSetVersion:
    """Raises `NotFound`."""
    version = DataSetVersion.objects.filter(id=version_id).first()
    if version is None:
        raise NotFound
    return version


def version_list_erased() -> QuerySet[DataSetVersion]:
    """Those of which an example was deleted: what was trained on them is to be trained anew, on `version_renew`."""
    return DataSetVersion.objects.filter(erased_at__isnull=False)


def versions_with(hashes: Iterable[str]) -> QuerySet[DataSetVersion]:
    """The versions that contain any of the examples of these hashes."""
    return DataSetVersion.objects.filter(id__in=Member.objects.filter(hash__in=hashes).values("version"))


def version_records(
    *, version: DataSetVersion, split: str = Split.TRAIN, file: UUID | str | None = None
) -> Iterator[Record]:
    """The records that a trainer takes (see `formats.training_form`), by their hashes; of one file, or all.

    Raises `Conflict` if an example of the version was deleted.
    """
    if version.erased_at:
        raise Conflict(
            f"Examples of data set version {version.digest[:12]} were deleted: it cannot be trained on any more.",
            code="version_erased",
        )
    return _records(version, split, file)


def _records(version: DataSetVersion, split: str, file: UUID | str | None) -> Iterator[Record]:
    """Page by page, so that nobody who reads slowly holds a cursor open."""
    members = Member.objects.filter(version=version, split=split).values("hash")
    examples = Example.objects.filter(hash__in=members, **({"files": file} if file else {}))
    rows = examples.order_by("hash").values_list("hash", "format", "content")
    last = ""
    while page := list(rows.filter(hash__gt=last)[:PAGE]):
        last = page[-1][0]
        for _, format_, content in page:
            if record := training_form(format_, content, version.method):
                yield record
