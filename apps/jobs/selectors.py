"""Reads of jobs. Rows reach users only through `*_for_user`."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

from celery.schedules import ParseException
from django.conf import settings
from django.db.models import Case, Count, IntegerField, JSONField, Min, Q, QuerySet, When
from django.db.models.expressions import RawSQL
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from rest_framework.exceptions import NotFound

from apps.common.streaming import paged
from apps.jobs.models import Job, State
from apps.jobs.streams import LARGE
from apps.users.models import User

OVERDUE = timedelta(minutes=5)
SCHEDULES = ("interval", "crontab", "solar")
CRONTAB_FIELDS = ("minute", "hour", "day_of_week", "month_of_year", "day_of_month")


def turns(queue: str) -> str:
    """The SQL of who is next in a queue: the columns `id` and `place`, from 1. `queue` is an SQL expression.

    Users take turns, in which teachers and staff count double, and each user's own jobs keep their order (weighted fair
    queueing; Demers, Keshav and Shenker 1989). What a user has running counts as turns taken, so that whoever has
    nothing yet comes before anybody's second. Among equals, whoever has waited longest since a job of theirs began, or
    since they came, is next: a newcomer waits for one round. A job of nobody's is a user of its own.
    """
    return f"""
        SELECT waiting.id, row_number() OVER (
                   ORDER BY (waiting.turn + coalesce(busy.jobs, 0))::real
                            / CASE WHEN users_user.role IN ('teacher', 'staff') THEN 2 ELSE 1 END,
                            greatest(waiting.created_at, served.at), waiting.created_at, waiting.id
               ) AS place
          FROM (SELECT id, user_id, created_at,
                       row_number() OVER (PARTITION BY coalesce(user_id, id) ORDER BY created_at, id) AS turn
                  FROM jobs_job AS queued WHERE queued.state = 'queued' AND queued.queue = {queue}) AS waiting
          LEFT JOIN (SELECT user_id, count(*) AS jobs FROM jobs_job AS running
                      WHERE running.state = 'running' AND running.queue = {queue} GROUP BY user_id) AS busy
                 ON busy.user_id = waiting.user_id
          LEFT JOIN LATERAL (SELECT max(started_at) AS at FROM jobs_job AS begun
                              WHERE begun.user_id = waiting.user_id AND begun.queue = {queue}) AS served ON true
          LEFT JOIN users_user ON users_user.id = waiting.user_id
    """  # noqa: S608 - an expression of ours, no input


def job_list_for_user(*, user: User) -> QuerySet[Job]:
    """The user's jobs, newest first, each with its `queue_position`."""
    place = RawSQL(f"(SELECT place FROM ({turns('jobs_job.queue')}) AS turns WHERE turns.id = jobs_job.id)", [])  # noqa: S608, S611
    position = Case(When(state=State.QUEUED, then=place), output_field=IntegerField())
    return Job.objects.filter(user=user).defer("request").annotate(counted_position=position)


def job_get_for_user(*, user: User, job_id: UUID) -> Job:
    """The user's job; raises `NotFound` for a foreign or unknown id alike."""
    return _job_of(job_list_for_user(user=user), job_id)


def job_told(*, user: User, job_id: UUID) -> Job:
    """The user's job with `told`: its result, without what is large in it; raises `NotFound`."""
    told = RawSQL("jobs_job.result - %s::text[]", [list(LARGE)], output_field=JSONField())
    return _job_of(job_list_for_user(user=user).defer("result").annotate(told=told), job_id)


def _job_of(jobs: QuerySet[Job], job_id: UUID) -> Job:
    job = jobs.filter(id=job_id).first()
    if job is None:
        raise NotFound
    return job


def job_accepted(*, user: User, job_id: UUID) -> dict[str, Any]:
    """What a 202 says of the job it made, and where to follow it."""
    job = job_get_for_user(user=user, job_id=job_id)
    summary = {"id": job.id, "kind": job.kind, "state": job.state, "queue_position": job.queue_position}
    return {"job": summary, "events": reverse("job-events", args=[job.id])}


def job_export(user: User) -> Iterator[dict[str, Any]]:
    fields = (
        *("id", "kind", "state", "request", "result", "error", "created_at", "started_at", "finished_at"),
        *("attempt", "deadline_at", "idempotency_key"),
    )
    return paged(Job.objects.filter(user=user).values(*fields), "created_at", "id", size=10)  # they may be large


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


def queue_share(*, queue: str, user: User) -> tuple[int, int, int]:
    """How many jobs wait in `queue`: all, those of people in the user's role, and the user's own."""
    waiting = Job.objects.filter(queue=queue, state=State.QUEUED).order_by()
    counts = waiting.aggregate(
        all=Count("id"), alike=Count("id", filter=Q(user__role=user.role)), own=Count("id", filter=Q(user=user))
    )
    return counts["all"], counts["alike"], counts["own"]


def schedules_overdue() -> list[tuple[PeriodicTask, timedelta]]:
    """The enabled schedules of beat that should have run again, the latest first, and for how long they are overdue.

    Beat writes only every three minutes when they last ran, so less than `OVERDUE` says nothing.
    """
    now = timezone.now()
    tasks = PeriodicTask.objects.filter(enabled=True, one_off=False, clocked=None)
    overdue = [
        (task, -task.schedule.remaining_estimate(task.last_run_at or task.date_changed))
        for task in tasks.exclude(expires__lt=now).exclude(start_time__gt=now).select_related(*SCHEDULES)
        if not crontab_errors(task.crontab)
    ]
    return sorted(((task, late) for task, late in overdue if late > OVERDUE), key=lambda pair: pair[1], reverse=True)


def schedules_never_due() -> list[tuple[PeriodicTask, str]]:
    """The enabled schedules that beat leaves out without a word because their crontab names no time, and why not."""
    tasks = PeriodicTask.objects.filter(enabled=True).exclude(crontab=None).order_by("name").select_related("crontab")
    return [(task, " ".join(errors.values())) for task in tasks if (errors := crontab_errors(task.crontab))]


def schedules_disabled() -> list[PeriodicTask]:
    """The schedules of the settings that somebody has disabled."""
    return list(PeriodicTask.objects.filter(enabled=False, name__in=settings.CELERY_BEAT_SCHEDULE).order_by("name"))


def crontab_errors(crontab: CrontabSchedule | None) -> dict[str, str]:
    """Why a crontab names no time, such as day 31 of month 2, by the field that is at fault; empty where it does."""
    if crontab is None or not (together := _crontab_error(crontab, *CRONTAB_FIELDS)):
        return {}
    for name in CRONTAB_FIELDS:
        if error := _crontab_error(crontab, name):
            return {name: error}
    return {CRONTAB_FIELDS[-1]: together}  # its days are not in its months


def _crontab_error(crontab: CrontabSchedule, *fields: str) -> str:
    """What beat says against these fields of a crontab, the others being any."""
    try:
        CrontabSchedule(**{name: getattr(crontab, name) for name in fields}).schedule  # noqa: B018
    except (ValueError, ParseException) as error:
        return str(error)
    return ""


def job_counts() -> dict[tuple[str, str], int]:
    """Rows by `(kind, state)`."""
    rows = Job.objects.order_by().values_list("kind", "state").annotate(n=Count("id"))
    return {(kind, state): n for kind, state, n in rows}
