"""Evaluations: an adapter, the live one and the base model answer the same problems, in the engine that serves."""

import time
from typing import Any
from uuid import UUID

from django.db import connection

from apps.inference.selectors import adapter_live
from apps.training.selectors.evaluations import evaluation_get, evaluation_records
from apps.training.services.evaluations import evaluation_progress
from workers.protocols import Refused
from workers.tasks.claimed import JobRun, job_task
from workers.tasks.runtime import have_adapter, runtime

REPORT_S = 1.0  # between two notes of how far it is


class Progress:
    """Writes how far an evaluation is to its row, now and then."""

    def __init__(self, evaluation_id: UUID) -> None:
        self._evaluation_id = evaluation_id
        self._written = 0.0

    def __call__(self, done: int, total: int) -> None:
        if done < total and time.monotonic() < self._written + REPORT_S:
            return
        evaluation_progress(evaluation_id=self._evaluation_id, done=done, total=total)
        connection.close()  # the next reply may take long
        self._written = time.monotonic()


@job_task("workers.evaluate")
def evaluate(job: JobRun) -> dict[str, Any]:
    """The result has `adapters` (whose figures they are), `sets` (where the problems are from), `items`, `too_long`
    (problems left out) and `measures` (see `workers.training.measures.compare`)."""
    from workers.training.evaluation import evaluate as compared  # loads torch, which a remote engine has no use for
    from workers.training.measures import Item

    evaluation = evaluation_get(evaluation_id=UUID(job.request["evaluation"]))
    sets, records = evaluation_records(evaluation)
    live = adapter_live(task=evaluation.task, subject=evaluation.subject)
    connection.close()
    if not records:
        raise Refused(
            "no_items",
            f"there is nothing to judge by: no evaluation set is of the task {evaluation.task}, and the adapter's data "
            "set version has no validation part that is still whole",
        )
    candidates = {"candidate": evaluation.adapter.name, **({"live": live.name} if live else {}), "base": None}
    for name in filter(None, candidates.values()):
        have_adapter(name)
    model, engine = runtime()[:2]
    made = compared(
        engine,
        model.tokenizer,
        [Item.of(record) for record in records],
        candidates,
        progress=Progress(evaluation.id),
        stopped=job.stopped,
    )
    absent = {} if live else {"live": None, "difference_to_live": None}
    return {
        "model": model.name,
        "model_digest": model.digest,
        "adapters": {"live": None, **candidates},
        "sets": sets,
        "items": made.items,
        "too_long": made.too_long,
        "measures": {name: {**measure, **absent} for name, measure in made.measures.items()},
    }
