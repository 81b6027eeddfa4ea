"""Reads of jobs. Rows reach users only through `*_for_user`."""

from typing import Any
from uuid import UUID

from django.db.models import Case, Count, IntegerField, Min, OuterRef, Q, QuerySet, Subquery, When
from django.db.models.functions import Coalesce
from django.urls import reverse
from rest_framework.exceptions import NotFound

from apps.jobs.models import Job, State
from apps.users.models import User


def job_list_for_user(*, user: User) -> QuerySet[Job]:
    """The user's jobs, newest first, each with its `queue_position` counted."""
    ahead = Job.objects.filter(queue=OuterRef("queue"), state=State.QUEUED, created_at__lt=OuterRef("created_at"))
    count = ahead.order_by().values("queue").annotate(n=Count("id")).values("n")
    position = Case(When(state=State.QUEUED, then=Coalesce(Subquery(count), 0) + 1), output_field=IntegerField())
    return Job.objects.filter(user=user).defer("request").annotate(counted_position=position)


def job_get_for_user(*, user: User, job_id: UUID) -> Job:
    """The user's job; raises `NotFound` for a foreign or unknown id alike."""
    job = job_list_for_user(user=user).filter(id=job_id).first()
    if job is None:
        raise NotFound
    return job


def job_accepted(*, user: User, job_id: UUID) -> dict[str, Any]:
    """What a 202 says of the job it made, and where to follow it."""
    job = job_get_for_user(user=user, job_id=job_id)
    summary = {"id": job.id, "kind": job.kind, "state": job.state, "queue_position": job.queue_position}
    return {"job": summary, "events": reverse("job-events", args=[job.id])}


def job_export(user: User) -> list[dict[str, Any]]:
    fields = ("id", "kind", "state", "request", "result", "error", "created_at", "started_at", "finished_at")
    return list(Job.objects.filter(user=user).order_by("created_at").values(*fields))


def queue_depths() -> dict[str, dict[str, Any]]:
    """Per queue: `waiting`, `running` and `oldest`, the creation time of the job that has waited longest."""
    rows = (
        Job.objects.filter(Q(state=State.QUEUED) | Q(state=State.RUNNING))  # in this form the partial indexes serve it
        .order_by()
        .values("queue")
        .annotate(
            waiting=Count("id", filter=Q(state=State.QUEUED)),
            running=Count("id", filter=Q(state=State.RUNNING)),
            oldest=Min("created_at", filter=Q(state=State.QUEUED)),
        )
    )
    return {row["queue"]: dict(row) for row in rows}


def job_counts() -> dict[tuple[str, str], int]:
    """Rows by `(kind, state)`."""
    rows = Job.objects.order_by().values_list("kind", "state").annotate(n=Count("id"))
    return {(kind, state): n for kind, state, n in rows}
