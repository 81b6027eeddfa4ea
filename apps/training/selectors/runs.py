"""Reads of training runs, and the form in which OpenAI's API shows them."""

from typing import Any, TypeVar
from uuid import UUID

from django.db.models import Model, Q, QuerySet
from rest_framework.exceptions import NotFound

from apps.training.models import File, Run, RunCheckpoint, RunEvent, RunState
from lyo import env

M = TypeVar("M", bound=Model)

METHODS = {"sft": "supervised", "full": "full", "dpo": "dpo", "kto": "kto"}  # as the API names those of a recipe
OPENAI_NAMES = {"validation_loss": "valid_loss"}
LEARNING_RATE = 3e-4  # that learning_rate_multiplier multiplies


def run_get(*, public_id: str) -> Run:
    """Raises `NotFound`."""
    runs = Run.objects.select_related("version", "adapter", "job")
    try:
        return runs.get(id=UUID(hex=public_id.removeprefix("ftjob-")))
    except (ValueError, Run.DoesNotExist) as error:
        raise NotFound(f"There is no fine-tuning job {public_id[:50]!r}.") from error


def run_list(*, limit: int, after: str | None = None) -> tuple[list[Run], bool]:
    """Newest first, up to `limit` of those that come after one, and whether there are more."""
    runs = Run.objects.select_related("version", "adapter", "job")
    if after:
        last = run_get(public_id=after)
        runs = runs.filter(Q(created_at__lt=last.created_at) | Q(created_at=last.created_at, id__lt=last.id))
    return _page(runs, limit)


def event_list(*, run: Run, limit: int, after: str | None = None) -> tuple[list[RunEvent], bool]:
    """The latest first."""
    events = RunEvent.objects.filter(run=run)
    return _page(events.filter(id__lt=_number(after, "ftevent-")) if after else events, limit)


def checkpoint_list(*, run: Run, limit: int, after: str | None = None) -> tuple[list[RunCheckpoint], bool]:
    """The latest first."""
    checkpoints = RunCheckpoint.objects.filter(run=run).select_related("adapter")
    if after:
        try:
            last = checkpoints.get(id=UUID(hex=after.removeprefix("ftckpt-")))
        except (ValueError, RunCheckpoint.DoesNotExist) as error:
            raise NotFound(f"The job has no checkpoint {after[:50]!r}.") from error
        checkpoints = checkpoints.filter(step__lt=last.step)
    return _page(checkpoints, limit)


def loss_curve(*, run: Run) -> list[tuple[int, float, float | None]]:
    """Of each step the training loss and, where it was measured, the validation loss."""
    rows = RunEvent.objects.filter(run=run, step__isnull=False).order_by("step").values_list("step", "data")
    return [(step, data["train_loss"], data.get("validation_loss")) for step, data in rows if step is not None]


def _page(rows: QuerySet[M], limit: int) -> tuple[list[M], bool]:
    found = list(rows[: limit + 1])
    return found[:limit], len(found) > limit


def _number(public_id: str, prefix: str) -> int:
    try:
        return int(public_id.removeprefix(prefix))
    except ValueError as error:
        raise NotFound(f"There is no event {public_id[:50]!r}.") from error


# --- as OpenAI has them ---


def run_data(run: Run) -> dict[str, Any]:
    recipe, statistics = run.recipe, run.version.statistics
    hyperparameters = {
        "n_epochs": recipe.get("epochs", "auto"),
        "batch_size": recipe.get("batch_size", "auto"),
        "learning_rate_multiplier": recipe["learning_rate"] / LEARNING_RATE if "learning_rate" in recipe else "auto",
        **({"beta": recipe["beta"]} if "beta" in recipe else {}),
    }
    method, error = METHODS[run.method], run.error or {}
    uploaded = (run.version.files, run.version.validation_files)
    files, validation_files = ([File(id=id_).public_id for id_ in ids] for ids in uploaded)
    return {
        "id": run.public_id,
        "object": "fine_tuning.job",
        "created_at": int(run.created_at.timestamp()),
        "started_at": int(run.started_at.timestamp()) if run.started_at else None,
        "finished_at": int(run.finished_at.timestamp()) if run.finished_at else None,
        "estimated_finish": _estimated_finish(run),
        "model": env.MODEL,
        "fine_tuned_model": run.adapter.name if run.adapter else None,
        "organization_id": "lyo",
        "status": run.state,
        "training_file": files[0] if files else "",
        "validation_file": validation_files[0] if validation_files else None,
        "result_files": [],
        "trained_tokens": None,
        "error": {"code": error["code"], "message": error["detail"], "param": None} if error else None,
        "seed": recipe.get("seed", 0),
        "hyperparameters": hyperparameters,
        "method": {"type": method, method: {"hyperparameters": hyperparameters}},
        "metadata": run.metadata or None,
        "integrations": [],
        "suffix": run.suffix,
        "recipe": recipe,
        "mixture": [{"file": File(id=UUID(file)).public_id, "weight": weight} for file, weight in run.weights.items()],
        "dataset_version": run.version.digest,
        "examples": statistics["examples"],
        "step": run.step,
        "steps": run.steps,
        "result": run.result,
    }


def run_summary(run: Run) -> dict[str, Any]:
    """A run in a list: what OpenAI's clients know of one, without most of what is Lyo's own."""
    return {name: value for name, value in run_data(run).items() if name not in ("recipe", "mixture", "result")}


def _estimated_finish(run: Run) -> int | None:
    last = RunEvent.objects.filter(run=run, step=run.step).first() if run.state == RunState.RUNNING else None
    return int(last.created_at.timestamp() + last.data["seconds_left"]) if last else None


def event_data(event: RunEvent) -> dict[str, Any]:
    return {
        "id": f"ftevent-{event.id}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at.timestamp()),
        "level": event.level,
        "type": "message" if event.step is None else "metrics",
        "message": event.message,
        "data": event.data,
    }


def checkpoint_data(checkpoint: RunCheckpoint, run: Run) -> dict[str, Any]:
    return {
        "id": f"ftckpt-{checkpoint.id.hex}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(checkpoint.created_at.timestamp()),
        "fine_tuning_job_id": run.public_id,
        "fine_tuned_model_checkpoint": checkpoint.adapter.name if checkpoint.adapter else "",
        "step_number": checkpoint.step,
        "metrics": {OPENAI_NAMES.get(name, name): value for name, value in checkpoint.metrics.items()},
    }
