"""Training: a `train` job's run goes on from its last checkpoint, and what it learns becomes an adapter that serves."""

import ctypes
import gc
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from django.db import InterfaceError, OperationalError

from apps.common.errors import Conflict
from apps.jobs.services import LeaseLost
from apps.training.models import Run as RunRow
from apps.training.models import RunEvent, RunState, Split
from apps.training.selectors.data import version_records
from apps.training.services import runs
from lyo import env
from workers.models.load import LoadedModel, load
from workers.protocols import EngineCrashed, Refused
from workers.tasks.adapters import adapter_publish
from workers.tasks.claimed import JobRun, job_task, patiently
from workers.training.data import Task, encode
from workers.training.recipe import Recipe
from workers.training.run import Metrics, Run

T = TypeVar("T")

CHECKPOINTS = "checkpoints"
OF_CHECKPOINTS = ("step", "train_loss", "validation_loss")  # the metrics that are told of one


@job_task("workers.train")
def train(job: JobRun) -> dict[str, Any]:
    """The result has the `adapter`, or for full tuning the `model_folder`; a stopped run's has nothing."""
    tidy()
    try:
        return learn(job)
    except LeaseLost:
        return {}
    finally:
        free_memory()


def learn(job: JobRun) -> dict[str, Any]:
    """Take the steps that are left. Raises `Refused`, and `LeaseLost` where the run was stopped."""
    say = partial(tell, job, runs.run_say)
    row = tell(job, runs.run_begin)
    folder = env.RUNS_DIR / str(row.id)
    recipe = Recipe.of(row.recipe)
    say(message=f"Loading {env.MODEL}")
    loaded = load(env.MODEL, env.MODELS_DIR, device=env.DEVICE, dtype=recipe.weights_dtype)
    tasks, validation = data(loaded, recipe, row, say)
    run = Run(loaded, recipe, tasks, folder / CHECKPOINTS, validation)
    began = f"Resumed from the checkpoint at step {run.step}" if run.step else "Started"
    say(message=f"{began}: {len(run.learner.trained)} weights are trained in {run.steps} steps")
    publish = partial(adapter_publish, task=row.task, subject=row.subject, dataset_version=row.version.digest)
    for metrics in run:
        facts = facts_of(metrics)
        tell(job, runs.run_record_step, step=metrics.step, steps=metrics.steps, metrics=facts)
        if metrics.checkpoint and not run.ended:  # else it is the result
            served = recipe.method != "full"
            adapter = publish(run.snapshot, suffix=f"{row.suffix}-step-{metrics.step}") if served else None
            known = {name: facts[name] for name in OF_CHECKPOINTS if name in facts}
            tell(job, runs.run_record_checkpoint, step=metrics.step, metrics=known, adapter=adapter)
        if job.stopped.is_set():
            run.save()
            return {}
    if recipe.method == "full":
        run.publish(folder / "model")
        return {"model_folder": str(folder / "model")}
    return {"adapter": publish(run.publish, suffix=row.suffix).name}


def tell(job: JobRun, service: Callable[..., T], **facts: Any) -> T:
    """Call a service of `runs`; while Postgres is away for long, another attempt may go on from the last checkpoint."""
    try:
        return patiently(partial(service, claim=job.claim, **facts))
    except (OperationalError, InterfaceError) as error:
        raise EngineCrashed(f"the run cannot be recorded: {error}") from error


def tidy() -> None:
    """Delete the checkpoints of runs that do not go on."""
    folders = {path.name: path for path in env.RUNS_DIR.glob("*") if path.is_dir()}
    ended = (RunState.SUCCEEDED, RunState.CANCELLED)
    going_on = RunRow.objects.filter(id__in=folders).exclude(state__in=ended).values_list("id", flat=True)
    for name in folders.keys() - {str(id_) for id_ in going_on}:
        shutil.rmtree(folders[name] / CHECKPOINTS, ignore_errors=True)


def data(loaded: LoadedModel, recipe: Recipe, row: RunRow, say: Callable[..., None]) -> tuple[list[Task], list[Task]]:
    """A task for each weighed file, or one of all; and what to validate with, if any was kept apart."""

    def task(name: str, weight: float = 1.0, **chosen: Any) -> Task:
        try:
            records = list(version_records(version=row.version, **chosen))
        except Conflict as conflict:
            raise Refused("version_erased", str(conflict.detail)) from conflict
        made = encode(
            loaded.tokenizer, records, method=recipe.method, max_length=recipe.max_length, name=name, weight=weight
        )
        if made.too_long:
            left_out = f"{name}: {len(made.too_long)} of {len(records)} examples are longer than {recipe.max_length}"
            say(message=f"{left_out} tokens, and left out", level=RunEvent.Level.WARN, too_long=len(made.too_long))
        return made

    tasks = [task(f"file-{file}", weight, file=file) for file, weight in row.weights.items()] or [task("train")]
    validated = row.version.statistics["examples"].get(Split.VALIDATION)
    return tasks, [task("validation", split=Split.VALIDATION)] if validated else []


def facts_of(metrics: Metrics) -> dict[str, Any]:
    """In OpenAI's terms, and without what there is none of."""
    facts = {"train_loss": metrics.loss, **asdict(metrics)}
    return {name: value for name, value in facts.items() if value is not None and name not in ("loss", "checkpoint")}


def free_memory() -> None:
    """Give back what the run took: the process lives on, and the tutor may need it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
