"""How an adapter comes to be judged: the job that compares it, and the gate's verdict."""

from typing import Any
from uuid import UUID

from django.db import transaction

from apps.inference.models import Adapter
from apps.jobs.models import Job, State
from apps.jobs.services import job_admit, job_create
from apps.training.gate import gate_decide
from apps.training.models import Evaluation
from apps.training.selectors.evaluations import gate_list
from apps.users.models import User

JOB_KIND = "evaluate"


@transaction.atomic
def evaluation_create(
    *, user: User | None, adapter: Adapter, task: str, subject: str = "", limit: int | None = None
) -> tuple[Evaluation, Job]:
    """Queue the comparison of an adapter with the live one and the base model.

    Raises `TooManyRequests` as `job_admit` does, where somebody asked for it.
    """
    if user is not None:
        job_admit(user=user, kind=JOB_KIND)
    evaluation = Evaluation(adapter=adapter, task=task, subject=subject, limit=limit, user=user)
    request = {"evaluation": str(evaluation.id), "adapter": adapter.name, "task": task, "subject": subject}
    evaluation.job = job = job_create(kind=JOB_KIND, user=user, request=request)
    evaluation.save()
    return evaluation, job


def evaluation_progress(*, evaluation_id: UUID, done: int, total: int) -> None:
    Evaluation.objects.filter(id=evaluation_id).update(replies_done=done, replies_total=total)


def evaluation_record(job: Job) -> dict[str, Any]:
    """When an evaluation's job ends, in the same transaction: keep its report, and let the gate decide."""
    evaluation = Evaluation.objects.filter(job=job).first()
    if evaluation is None or job.result is None or job.state != State.SUCCEEDED:
        return {}
    evaluation.report = job.result
    evaluation.failures = gate_decide(job.result, gate_list(task=evaluation.task))
    evaluation.passed = not evaluation.failures
    evaluation.save(update_fields=["report", "failures", "passed", "updated_at"])
    return {"evaluation": str(evaluation.id), "passed": evaluation.passed, "failures": evaluation.failures}
