"""Every change of a training run: by those who asked for it, and by the worker whose job it is."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models.functions import Now

from apps.common.errors import Conflict
from apps.inference.models import Adapter
from apps.jobs.models import Job, State
from apps.jobs.services import Claim, LeaseLost, job_admit, job_cancel, job_create, job_find_repeat, job_progress
from apps.training.models import DataSetVersion, Run, RunCheckpoint, RunEvent, RunState
from apps.training.services.data import version_build
from apps.users.models import User

logger = structlog.get_logger(__name__)

JOB_KIND = "train"
DATA = {"sft": "supervised", "full": "supervised", "dpo": "dpo", "kto": "kto"}  # what a recipe's method learns from


# --- those who ask ---


@transaction.atomic
def run_start(
    *,
    user: User,
    files: Mapping[UUID, float],
    validation_files: list[UUID],
    recipe: dict[str, Any],
    suffix: str,
    task: str = "",
    subject: str = "",
    metadata: dict[str, str] | None = None,
    idempotency_key: str | None = None,
) -> Run:
    """Fix the files' examples as a version and queue a run on it. `files` have the weights by which they are drawn.

    Raises `ValidationError` where a method can learn nothing from them, `Conflict` as `job_find_repeat` does, and
    `TooManyRequests` as `job_admit` does.
    """
    asked = {
        "files": {str(file): weight for file, weight in files.items()},
        "validation_files": [str(file) for file in validation_files],
        "recipe": recipe,
        "suffix": suffix,
        "task": task,
        "subject": subject,
    }
    if repeated := job_find_repeat(user=user, idempotency_key=idempotency_key, request=asked):
        return Run.objects.get(events__data__job=str(repeated.id))
    job_admit(user=user, kind=JOB_KIND)
    version, _ = version_build(
        user=user,
        method=DATA[recipe.get("method", "sft")],
        files=list(files),
        validation_files=validation_files,
    )
    return run_create(
        version=version,
        recipe=recipe,
        weights=asked["files"] if len(files) > 1 else {},
        suffix=suffix,
        task=task,
        subject=subject,
        metadata=metadata or {},
        user=user,
        idempotency_key=idempotency_key,
        fingerprint_of=asked,
    )


@transaction.atomic
def run_create(
    *,
    version: DataSetVersion,
    recipe: dict[str, Any],
    suffix: str,
    idempotency_key: str | None = None,
    fingerprint_of: Any = None,
    **fields: Any,
) -> Run:
    """Queue a run on a version. `fields` are others of `Run`."""
    run = Run(version=version, recipe=recipe, suffix=suffix, **fields)
    run.save(force_insert=True)
    _queue(run, "Created", idempotency_key, fingerprint_of)
    return run


@transaction.atomic
def run_pause(*, run: Run) -> Run:
    """Stop a run where it is; its worker writes a checkpoint. Raises `Conflict` for one that is not under way."""
    return _stop(run, RunState.PAUSED, "Paused", Run.ACTIVE)


@transaction.atomic
def run_cancel(*, run: Run) -> Run:
    """End a run. Raises `Conflict` for one that has ended."""
    return _stop(run, RunState.CANCELLED, "Cancelled", (*Run.ACTIVE, RunState.PAUSED))


@transaction.atomic
def run_resume(*, run: Run) -> Run:
    """Let a paused or failed run go on from its last checkpoint. Raises `Conflict` for any other, and `TooManyRequests`
    as `job_admit` does."""
    run = _locked(run, (RunState.PAUSED, RunState.FAILED), "resumed")
    if run.user is not None:
        job_admit(user=run.user, kind=JOB_KIND)
    run.state, run.error, run.finished_at = RunState.QUEUED, None, None
    _queue(run, "Queued again")
    return run


def _stop(run: Run, state: RunState, word: str, allowed: tuple[RunState, ...]) -> Run:
    run = _locked(run, allowed, word.lower())
    run.state = state
    run.save()
    _say(run, f"{word} at step {run.step}")
    if run.job:
        job_cancel(job=run.job)
    return run


def _locked(run: Run, allowed: tuple[RunState, ...], word: str) -> Run:
    run = Run.objects.select_for_update(of=("self",)).select_related("job", "version").get(id=run.id)
    if run.state not in allowed:
        raise Conflict(f"A run that is {run.state} cannot be {word}.", code="wrong_state")
    return run


def _queue(run: Run, word: str, idempotency_key: str | None = None, fingerprint_of: Any = None) -> None:
    run.job = job_create(
        kind=JOB_KIND,
        user=run.user,
        request={"run": str(run.id)},
        idempotency_key=idempotency_key,
        fingerprint_of=fingerprint_of,
    )
    run.save()
    _say(run, word, job=str(run.job.id))


def _say(run: Run, message: str, level: str = RunEvent.Level.INFO, **data: Any) -> None:
    RunEvent.objects.create(run=run, level=level, message=message, data=data)


# --- the worker ---


@transaction.atomic
def run_begin(*, claim: Claim) -> Run:
    """The run of a claimed job, which now runs; raises `LeaseLost` where it was stopped meanwhile."""
    run = _claimed(claim, (RunState.QUEUED, RunState.RUNNING))
    if run.state == RunState.QUEUED:
        Run.objects.filter(id=run.id, started_at=None).update(started_at=Now())
        Run.objects.filter(id=run.id).update(state=RunState.RUNNING)
    run.refresh_from_db()
    return run


@transaction.atomic
def run_say(*, claim: Claim, message: str, level: str = RunEvent.Level.INFO, **data: Any) -> None:
    _say(_claimed(claim), message, level, **data)


@transaction.atomic
def run_record_step(*, claim: Claim, step: int, steps: int, metrics: dict[str, Any]) -> None:
    """A step's metrics, with `train_loss`; a step that is taken again after a kill replaces what was said of it."""
    run = _claimed(claim)
    Run.objects.filter(id=run.id).update(step=step, steps=steps)
    message = f"Step {step}/{steps}: training loss {metrics['train_loss']:.4f}"
    RunEvent.objects.update_or_create(run=run, step=step, defaults={"message": message, "data": metrics})


@transaction.atomic
def run_record_checkpoint(*, claim: Claim, step: int, metrics: dict[str, Any], adapter: Adapter | None) -> None:
    """A checkpoint, from which on the run's worker may die as often again as it might at the beginning."""
    run = _claimed(claim)
    defaults = {"metrics": metrics, "adapter": adapter}
    _, is_new = RunCheckpoint.objects.update_or_create(run=run, step=step, defaults=defaults)
    if is_new:
        _say(run, f"Checkpoint created at step {step}")
    job_progress(claim=claim)


def _claimed(claim: Claim, states: tuple[RunState, ...] = (RunState.RUNNING,)) -> Run:
    """Its run, locked, if the claim still holds."""
    held = Run.objects.select_for_update(of=("self",)).filter(job=claim.job.id, job__lease_token=claim.token)
    run = held.filter(state__in=states).first()
    if run is None:
        raise LeaseLost(str(claim.job.id))
    return run


def run_record_end(job: Job) -> dict[str, Any]:
    """When a run's job ends, in the same transaction: the run ends as it did, unless it was stopped before."""
    run = Run.objects.select_for_update().filter(job=job, state__in=Run.ACTIVE).first()
    if run is None:
        return {}
    result = job.result or {}
    match job.state:
        case State.SUCCEEDED:
            run.state, run.result = RunState.SUCCEEDED, result
            run.adapter = Adapter.objects.filter(name=result.get("adapter")).first()
            _say(run, f"The run has succeeded: {result.get('adapter') or result.get('model_folder')}")
        case State.CANCELLED:
            run.state = RunState.CANCELLED
            _say(run, f"Cancelled at step {run.step}")
        case _:
            run.state, run.error = RunState.FAILED, job.error
            _say(run, f"The run has failed: {(job.error or {}).get('detail')}", RunEvent.Level.ERROR)
    run.finished_at = Now()
    run.save()
    return {}
