"""How examples come, are judged, become data set versions, and go."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from itertools import count, islice
from typing import IO, Any
from uuid import UUID

import structlog
from django.core.exceptions import ValidationError
from django.core.files import File as DjangoFile
from django.db import IntegrityError, transaction
from django.db.models import Case, Q, QuerySet, When
from django.utils import timezone

from apps.common.constants import Subject, Task
from apps.common.errors import Conflict
from apps.common.examples import Observation, sources
from apps.common.sheets import BadSheet, is_sheet, sheet_of, utf8_lines
from apps.training.formats import (
    FORMATS,
    TASKS,
    Format,
    Invalid,
    Line,
    Marks,
    Method,
    Record,
    parse,
    parse_item,
    parts_of,
    validate,
)
from apps.training.models import (
    Collection,
    DataSetVersion,
    EvaluationItem,
    EvaluationSet,
    Example,
    File,
    Member,
    Review,
    Split,
    State,
)
from apps.training.privacy import Mask, mask, mask_record
from apps.training.selectors.data import evaluation_overlaps, example_get, versions_with
from apps.training.similarity import COMPARED, ByBand, ExampleSketch, Sketch, example_bands, problem_hash
from apps.users.models import User
from apps.users.selectors import user_list_consenting

logger = structlog.get_logger(__name__)

MAX_LINE = 2**18  # bytes; no context holds more
BATCH = 500  # rows of one INSERT
IMPORTING_S = 120.0  # that reading and masking a file may take: whoever sent it waits, and so do others
COLLECTING_S = 20.0  # that one collection may take: others wait for the worker, too
MASKED_TEXTS = 512  # that it remembers: each answer is observed with the turns before it
LOCKED_AT_ONCE = 20  # observations in one transaction, during which their learners' profiles are locked
SETTLED = timedelta(seconds=30)  # after it, no transaction is open any more that may add something older
FILE = "file"  # the source of what is imported
STATISTICS = ("lines", "examples", "duplicates", "near_duplicates", "masked")  # of a file
EPOCH = datetime.fromtimestamp(0, UTC)


# --- examples ---


def example_hash(format_: str, content: Record) -> str:
    return sha256(json.dumps([format_, content], sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def example_new(
    *, format_: str, record: Record, names: Iterable[str] = (), masked: Mask = mask, **fields: Any
) -> Example:
    """An example that is not saved yet: masked, with all that is derived from its content."""
    content = mask_record(record, names, masked)
    return Example(
        format=format_, original=record if content != record else None, **_derived(format_, content), **fields
    )


def _derived(format_: str, content: Record) -> dict[str, Any]:
    return {
        "content": content,
        "hash": example_hash(format_, content),
        "problem_hash": problem_hash(parts_of(format_, content).problem),
        "bands": example_bands(format_, content),
    }


@transaction.atomic
def example_review(*, example: Example, reviewer: User, decision: str, content: Any = None, note: str = "") -> Example:
    """Approve, edit (with the new `content`, in a format of the import) or reject; one's later decision replaces it.

    The edited answer of a thumb down becomes a preference for it. Raises `ValidationError` for content of no format,
    and `Conflict` where a data set version has the example, or another example that content.
    """
    example = example_get(example_id=example.id, lock=True)
    if decision == Review.Decision.EDIT:
        _edit(example, content)
    example.state = State.REJECTED if decision == Review.Decision.REJECT else State.APPROVED
    example.note = ""
    if example.state == State.APPROVED and (item := _overlap(example)):
        raise Conflict(f"Its problem is in evaluation set {item.evaluation_set}.", code="overlaps_evaluation")
    try:
        with transaction.atomic():
            example.save()
    except IntegrityError as error:
        raise Conflict("Another example has this content.", code="duplicate_example") from error
    Review.objects.update_or_create(example=example, reviewer=reviewer, defaults={"decision": decision, "note": note})
    return example


def _edit(example: Example, content: Any) -> None:
    try:
        format_, record = validate(content)
    except Invalid as error:
        raise ValidationError({"content": str(error)}) from error
    if record == example.content:
        return
    if versions_with([example.hash]).exists():
        raise Conflict("A data set version has this example: reject it, and import another.", code="example_in_use")
    before = example.original or example.content
    if format_ == example.format == Format.THUMB and _is_correction(record, example.content):
        pair = {"chosen": _answer(record), "rejected": _answer(example.content)}
        format_, record = Format.PREFERENCE, {"messages": record["messages"][:-1], **pair}
    example.original, example.format = before, format_
    for name, value in _derived(format_, record).items():
        setattr(example, name, value)


def _is_correction(record: Record, of: Record) -> bool:
    return not record["liked"] and not of["liked"] and _answer(record) != _answer(of)


def _answer(record: Record) -> str:
    answer: str = record["messages"][-1]["content"]
    return answer


def _overlap(example: Example) -> EvaluationItem | None:
    return evaluation_overlaps([example])[0]


@transaction.atomic
def examples_delete(examples: QuerySet[Example]) -> list[DataSetVersion]:
    """Delete examples; the versions that had any of them are marked, and returned: nothing is trained on them again."""
    hashes = list(examples.values_list("hash", flat=True))
    versions = list(versions_with(hashes))
    DataSetVersion.objects.filter(id__in=[version.id for version in versions], erased_at=None).update(
        erased_at=timezone.now()
    )
    Example.objects.filter(hash__in=hashes).delete()
    if versions:
        logger.warning("examples were deleted", versions=[version.digest for version in versions], examples=len(hashes))
    return versions


def learner_erase(user: User) -> None:
    """Delete what was collected from a learner, who leaves or takes back their consent."""
    examples_delete(Example.objects.filter(learner=user))


def examples_forget(source: str, ids: Sequence[UUID]) -> None:
    """Delete what was made of these rows of a source."""
    examples_delete(Example.objects.filter(source=source, source_id__in=ids))


# --- collection ---


def examples_collect(*, source: str) -> Counter[str]:
    """Make examples of what a source observed since the last time.

    Counts each observation as `added`, `changed`, `unchanged`, `duplicate`, `overlaps` (an evaluation set), `invalid`
    or `unconsented`. What takes long, reading, masking and comparing, is done before anybody's row is locked, and only
    for so long: what is left then is collected the next time.
    """
    cursor, _ = Collection.objects.get_or_create(source=source, defaults={"until": EPOCH})
    until = timezone.now() - SETTLED
    if until <= cursor.until:
        return Counter()
    observed = iter(sources[source](user_list_consenting(), cursor.until, until))
    masked = lru_cache(maxsize=MASKED_TEXTS)(mask)
    ends_at = time.monotonic() + COLLECTING_S
    outcomes: Counter[str] = Counter()
    while True:
        some = list(islice(observed, LOCKED_AT_ONCE))
        learners = user_list_consenting().in_bulk({observation.learner_id for observation in some})
        drafts: list[_Draft] = []
        kept = _Kept()
        for seen in some:
            drafts.append(_draft(source, seen, learners.get(seen.learner_id), kept, masked))
            if len(drafts) > 1 and time.monotonic() > ends_at:  # the first may be where the last collection ended
                break
        last = len(drafts) < LOCKED_AT_ONCE and len(drafts) == len(some)
        collected = _collect(cursor, drafts, until if last else drafts[-1].seen.changed_at)
        outcomes += collected or Counter()
        if collected is None or last or time.monotonic() > ends_at:
            return outcomes


@dataclass(frozen=True)
class _Draft:
    """What would become of an observation, if its learner still is who they were.

    example: None, of no format. unfit: why it would not be kept, if so: `unconsented`, `overlaps` or `duplicate`.
    """

    seen: Observation
    names: list[str]
    example: Example | None = None
    unfit: str = ""


def _draft(source: str, seen: Observation, learner: User | None, kept: "_Kept", masked: Mask = mask) -> _Draft:
    """kept: what was drafted with it, of which it must be no duplicate either."""
    if learner is None or not _consented(learner, seen):
        return _Draft(seen, [], unfit="unconsented")
    names = _names(learner)
    try:
        format_, record = validate(seen.record)
    except Invalid:  # an empty answer, for one
        return _Draft(seen, names)
    about = {"task": seen.task, "subject": seen.subject, "source": source, "source_id": seen.id}
    example = example_new(format_=format_, record=record, names=names, masked=masked, **about)
    if _overlap(example):
        return _Draft(seen, names, example, "overlaps")
    is_new = not _near_duplicates(example) and kept.add(example) == "examples"
    return _Draft(seen, names, example, "" if is_new else "duplicate")


@transaction.atomic
def _collect(cursor: Collection, drafts: Sequence[_Draft], until: datetime) -> Counter[str] | None:
    """Keep what may be kept, and move the cursor; None where somebody else has moved it."""
    here = Collection.objects.select_for_update().get(pk=cursor.pk)
    if here.until != cursor.until:
        return None
    # Their consent holds until this transaction ends: taking it back waits, and then deletes what was added here.
    ids = {draft.seen.learner_id for draft in drafts}
    learners = {user.id: user for user in user_list_consenting().filter(id__in=ids).select_for_update(no_key=True)}
    outcomes = Counter(_keep(draft, learners.get(draft.seen.learner_id)) for draft in drafts)
    cursor.until = until
    cursor.save()
    return outcomes


def _keep(draft: _Draft, learner: User | None) -> str:
    seen = draft.seen
    if learner is None or not _consented(learner, seen):
        return "unconsented"
    if draft.example is not None and _names(learner) != draft.names:  # the new ones must be masked
        draft = _draft(draft.example.source, seen, learner, _Kept())
    example = draft.example
    if example is None:
        return draft.unfit or "invalid"
    record = example.original or example.content
    known = Example.objects.filter(source=example.source, source_id=seen.id).first()
    if known is not None and (record == (known.original or known.content) or versions_with([known.hash]).exists()):
        return "unchanged"
    example.learner, example.consented_at = learner, learner.training_consented_at
    if known is not None:
        known.delete()
    if draft.unfit:
        return draft.unfit
    if Example.objects.filter(hash=example.hash).exists():  # it has come since it was compared
        return "duplicate"
    example.save()
    return "added" if known is None else "changed"


def _consented(learner: User, seen: Observation) -> bool:
    return learner.training_consented_at is not None and seen.done_at >= learner.training_consented_at


def _names(learner: User) -> list[str]:
    first, last = learner.first_name, learner.last_name
    return [learner.username, *first.split(), *last.split()]


def _near_duplicates(example: Example) -> bool:
    """Whether one that is kept has the same content, or nearly; not the one that it would replace."""
    near = Example.objects.filter(Q(hash=example.hash) | Q(bands__overlap=example.bands, format=example.format))
    near = near.exclude(source=example.source, source_id=example.source_id)
    same_first = Case(When(hash=example.hash, then=0), default=1)
    sketch = ExampleSketch.of(example.format, example.content)
    return any(
        other.hash == example.hash or sketch.is_alike(ExampleSketch.of(example.format, other.content))
        for other in near.only("hash", "content").order_by(same_first, "-created_at")[:COMPARED]
    )


# --- files ---


def file_create(*, user: User, filename: str, stream: IO[bytes], subject: str = "", task: str = "") -> File:
    """Import a file of examples; the same bytes give the file that is there, with what is said now of its subject and
    its task, if anything.

    All lines are of one format. Examples that are there already become the file's too; of near duplicates within the
    file the first is kept. Raises `ValidationError` that names line and field, and then keeps nothing.
    """
    digest, size = _digest(stream)
    if found := File.objects.filter(digest=digest).first():
        return _file_say(found, subject, task)
    file = File(filename=filename, digest=digest, size=size, user=user)
    try:
        _import(file, stream, subject, task)
    except Invalid as error:
        raise ValidationError({"file": str(error)}) from error
    except IntegrityError:
        if found := File.objects.filter(digest=digest).first():  # uploaded twice at once
            return _file_say(found, subject, task)
        raise
    return file


@transaction.atomic
def _file_say(file: File, subject: str, task: str) -> File:
    """Note what was said last of a file, and of its examples: they may be another's, too."""
    file = File.objects.select_for_update().get(id=file.id)
    said = {name: value for name, value in (("subject", subject), ("task", task)) if value}
    _check_task(file.format, task)
    for name, value in said.items():
        setattr(file, name, value)
    if said:
        file.save(update_fields=[*said, "updated_at"])
        file.examples.filter(source=FILE).update(**said)
    return file


def _check_task(format_: str, task: str) -> None:
    fixed = TASKS.get(Format(format_))
    if task and fixed and task != fixed:
        raise ValidationError({"task": f"Examples of the format {format_} are for the task {fixed}."})


def file_delete(*, file: File) -> None:
    """Delete a file, its bytes and the examples that only it has."""
    with transaction.atomic():
        mine = Example.objects.filter(source=FILE, files=file)
        shared = Example.objects.filter(source=FILE, files__in=File.objects.exclude(id=file.id))
        examples_delete(mine.exclude(id__in=shared.values("id")))
        file.delete()
        transaction.on_commit(lambda: file.content.delete(save=False))


def _digest(stream: IO[bytes]) -> tuple[str, int]:
    digest, size = sha256(), 0
    stream.seek(0)
    while chunk := stream.read(2**20):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _import(file: File, stream: IO[bytes], subject: str, task: str) -> None:
    """Read and mask all of it, and only then write rows, in one transaction."""
    file.subject = subject or Subject.GENERAL
    counts: Counter[str] = Counter()
    kept, new = _Kept(), []
    ends_at = time.monotonic() + IMPORTING_S
    records = _records(file.filename, stream)
    while batch := list(islice(records, BATCH)):
        if not file.format:
            file.format = batch[0][1]
            _check_task(file.format, task)
            file.task = task or TASKS.get(Format(file.format), Task.TUTORING)
        examples = [_imported(file, ends_at, *numbered) for numbered in batch]
        for (number, _, _), item in zip(batch, evaluation_overlaps(examples), strict=True):
            if item:
                raise Invalid(f"line {number}: its problem is in evaluation set {item.evaluation_set}")
        outcomes = [kept.add(example) for example in examples]
        counts.update(lines=len(examples), masked=sum(example.original is not None for example in examples))
        counts.update(outcomes)
        new += [example for example, outcome in zip(examples, outcomes, strict=True) if outcome == "examples"]
    if not counts:
        raise Invalid("the file is empty: it has no line with an example")
    file.statistics = {name: counts[name] for name in STATISTICS}
    stream.seek(0)
    with transaction.atomic():
        Example.objects.bulk_create(new, ignore_conflicts=True, batch_size=BATCH)
        file.save(force_insert=True)
        for start in range(0, len(new), BATCH):
            hashes = [example.hash for example in new[start : start + BATCH]]
            file.examples.add(*Example.objects.filter(hash__in=hashes).only("id"))
        file.content.save(f"training/{file.id}.jsonl", DjangoFile(stream), save=False)
        file.save()
        _file_say(file, subject, task)


def _records(
    name: str, stream: IO[bytes], read: Callable[[Line, int], tuple[Any, ...]] = parse
) -> Iterator[tuple[Any, ...]]:
    """The number of each line that is not blank, and what is read of it. Raises `Invalid`."""
    try:
        for number, line in _lines(name, stream):
            yield number, *read(line, number)
    except BadSheet as error:
        raise Invalid(str(error)) from error


def _lines(name: str, stream: IO[bytes]) -> Iterator[tuple[int, Line]]:
    stream.seek(0)
    if is_sheet(name, stream.read(64)):
        stream.seek(0)
        sheet = sheet_of(stream.read())
        for number, row in sheet.records():
            if row is None:
                raise Invalid(f"line {number}: it does not have the {len(sheet.columns)} columns of the header")
            _check_length(number, sum(len(cell.encode()) for cell in row.values()))
            yield number, row
        return
    lines = utf8_lines(stream)
    for number in count(1):
        line = lines.readline(MAX_LINE + 1)
        if not line:
            return
        _check_length(number, len(line) if len(line) <= MAX_LINE else _whole_length(line, lines))
        if line.strip():
            yield number, line


def _whole_length(line: bytes, rest: IO[bytes]) -> int:
    """The bytes of a line of which only the beginning was read."""
    length = len(line)
    while not line.endswith(b"\n") and (line := rest.readline(2**20)):
        length += len(line)
    return length


def _check_length(number: int, length: int) -> None:
    if length > MAX_LINE:
        raise Invalid(f"line {number}: it has {length} bytes, of at most {MAX_LINE}")


def _imported(file: File, ends_at: float, number: int, format_: Format, record: Record) -> Example:
    if time.monotonic() > ends_at:
        raise Invalid(f"reading it took more than {IMPORTING_S:g} s, up to line {number}: send it in parts")
    if format_ != file.format:
        raise Invalid(f"line {number}: it is of the format {format_}, but the file began with {file.format}")
    return example_new(
        format_=format_, record=record, task=file.task, subject=file.subject, state=State.APPROVED, source=FILE
    )


class _Kept:
    """The examples of one file so far, by their bands."""

    def __init__(self) -> None:
        self._hashes: set[str] = set()
        self._by_band: ByBand[Example] = ByBand()
        # Of those that are compared again and again; of all of a large file they would take too much memory.
        self._sketch = lru_cache(2 * COMPARED)(lambda kept: ExampleSketch.of(kept.format, kept.content))

    def add(self, example: Example) -> str:
        """The statistic that it counts for: `examples`, `duplicates` or `near_duplicates`."""
        if example.hash in self._hashes:
            return "duplicates"
        sketch = self._sketch(example)
        if any(sketch.is_alike(self._sketch(other)) for other in self._by_band.candidates(example.bands)):
            return "near_duplicates"
        self._hashes.add(example.hash)
        self._by_band.add(example.bands, example)
        return "examples"


# --- evaluation sets ---


@transaction.atomic
def evaluation_set_register(*, name: str, task: str, stream: IO[bytes], filename: str = "") -> EvaluationSet:
    """Make the next version of an evaluation set of a file; the same problems give the one that is there.

    Examples that have one of its problems are rejected, and come back by no import. Raises `ValidationError`.
    """
    try:
        items = [_item(position, *read) for position, (_, *read) in enumerate(_records(filename, stream, parse_item))]
    except Invalid as error:
        raise ValidationError({"file": str(error)}) from error
    if not items:
        raise ValidationError({"file": "the file is empty: it has no line with a problem"})
    hashes = [example_hash(item.format, {**item.content, **item.marks.given}) for item in items]
    digest = sha256("\n".join([name, task, *hashes]).encode()).hexdigest()
    if found := EvaluationSet.objects.filter(digest=digest).first():
        return found
    last = EvaluationSet.objects.filter(name=name).order_by("-version").first()
    made = EvaluationSet.objects.create(name=name, version=last.version + 1 if last else 1, task=task, digest=digest)
    for item in items:
        item.evaluation_set = made
    EvaluationItem.objects.bulk_create(items, batch_size=BATCH)
    _reject_overlapping()
    return made


def _item(position: int, format_: Format, record: Record, marks: Marks) -> EvaluationItem:
    problem = parts_of(format_, record).problem
    return EvaluationItem(
        position=position,
        format=format_,
        content=record,
        problem=problem,
        **marks._asdict(),
        bands=Sketch.of(problem).bands(),
    )


def _reject_overlapping() -> None:
    rows = Example.objects.exclude(state=State.REJECTED).only("format", "content").iterator(chunk_size=BATCH)
    while batch := list(islice(rows, BATCH)):
        for example, item in zip(batch, evaluation_overlaps(batch), strict=True):
            if item:
                note = f"Its problem is in evaluation set {item.evaluation_set}."
                Example.objects.filter(id=example.id).update(state=State.REJECTED, note=note)


# --- data set versions ---


@transaction.atomic
def version_build(
    *,
    user: User | None,
    method: str,
    task: str = "",
    subject: str = "",
    files: Sequence[UUID] = (),
    validation_files: Sequence[UUID] = (),
    validation_share: float = 0.1,
) -> tuple[DataSetVersion, bool]:
    """Fix the approved examples that a method can learn from; the second value is whether that gave a new version.

    Where the data are as they were, it is the version that is there. A problem is validated on if it is in
    `validation_files` or, without those, if its hash falls into `validation_share`: in every version the same.
    Raises `ValidationError` where there is nothing to train on.
    """
    training = _approved(method, task, subject, files)
    validation = _approved(method, task, subject, validation_files) if validation_files else training
    parts: dict[str, str] = {}
    statistics: dict[str, Counter[str]] = defaultdict(Counter)
    apart = set(validation.values_list("problem_hash", flat=True)) if validation_files else None
    chosen = training | validation if validation_files else training
    columns = ("hash", "problem_hash", "subject", "format", "source")
    for hash_, problem, *kinds in chosen.distinct().order_by("hash").values_list(*columns).iterator():
        validated = problem in apart if apart is not None else int(problem[:8], 16) < validation_share * 2**32
        parts[hash_] = Split.VALIDATION if validated else Split.TRAIN
        statistics["examples"][parts[hash_]] += 1
        for column, kind in zip(columns[2:], kinds, strict=True):
            statistics[f"{column}s"][kind] += 1
    if not statistics["examples"][Split.TRAIN]:
        raise ValidationError("No approved example matches, so there is nothing to train on.", code="no_examples")
    lines = (f"{split} {hash_}" for hash_, split in parts.items())
    digest = sha256("\n".join([method, *lines]).encode()).hexdigest()
    recipe = {
        "user": user,
        "method": method,
        "task": task,
        "subject": subject,
        "files": list(files),
        "validation_files": list(validation_files),
        "validation_share": validation_share,
        "statistics": statistics,
    }
    version, made = DataSetVersion.objects.get_or_create(digest=digest, erased_at=None, defaults=recipe)
    if not made:
        return version, False
    members = (Member(version=version, hash=hash_, split=split) for hash_, split in parts.items())
    while batch := list(islice(members, BATCH)):
        Member.objects.bulk_create(batch)
    return version, True


def version_renew(*, version: DataSetVersion) -> tuple[DataSetVersion, bool]:
    """Build from what is there now as `version` was built: after an erasure, or to see whether anything is new."""
    return version_build(
        user=version.user,
        method=version.method,
        task=version.task,
        subject=version.subject,
        files=version.files,
        validation_files=version.validation_files,
        validation_share=version.validation_share,
    )


def _approved(method: str, task: str, subject: str, files: Sequence[UUID]) -> QuerySet[Example]:
    examples = Example.objects.filter(state=State.APPROVED, format__in=FORMATS[Method(method)])
    if method == Method.SUPERVISED:
        examples = examples.exclude(format=Format.THUMB, content__liked=False)
    given = {"task": task, "subject": subject, "files__in": list(files)}
    return examples.filter(**{name: value for name, value in given.items() if value})
