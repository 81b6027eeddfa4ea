"""Runs that start by themselves."""

import json
from datetime import datetime, timedelta
from itertools import count

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from apps.training.models import Member, Run, RunState, Schedule, Slot, Split
from apps.training.services.data import version_build
from apps.training.services.runs import DATA, run_create

BEAT_TASK = "training.look"
FRUITLESS = (RunState.FAILED, RunState.CANCELLED)  # after these the same data are tried again


@transaction.atomic
def schedule_save(*, schedule: Schedule) -> Schedule:
    """Save a schedule, and have beat look at it when it is due."""
    schedule.save()
    beat, _ = PeriodicTask.objects.update_or_create(
        name=f"training.look {schedule.id}",
        defaults={
            "task": BEAT_TASK,
            "args": json.dumps([str(schedule.id)]),
            "queue": "default",
            "crontab": schedule.crontab,
            "enabled": schedule.enabled,
            "description": f"Training: {schedule.name}",
        },
    )
    if schedule.beat != beat:
        schedule.beat = beat
        schedule.save(update_fields=["beat"])
    return schedule


@transaction.atomic
def schedule_delete(*, schedule: Schedule) -> None:
    PeriodicTask.objects.filter(training_schedule=schedule).delete()
    schedule.delete()


@transaction.atomic
def schedule_look(*, schedule: Schedule, now: datetime | None = None) -> Slot:
    """Start the run of the slot that is due, or note why there is none. Whoever looks a second time finds the first's.

    There is none where the data are those of the last run, or hold too few new examples, or that run has not ended.
    """
    due_at = last_due(schedule.crontab, now or timezone.now())
    slot, is_new = Slot.objects.get_or_create(schedule=schedule, due_at=due_at)
    if is_new:
        last = Run.objects.filter(slots__schedule=schedule).exclude(state__in=FRUITLESS).first()
        try:
            slot.run = _run(schedule, last)
        except NothingToDo as reason:
            slot.outcome = str(reason)
        slot.save()
    return slot


class NothingToDo(Exception):
    """Why a slot has no run."""


def _run(schedule: Schedule, last: Run | None) -> Run:
    if last and last.is_active:
        raise NothingToDo(f"The last run, {last.public_id}, has not ended.")
    method = DATA[schedule.recipe.get("method", "sft")]
    try:
        version, _ = version_build(user=None, method=method, task=schedule.task, subject=schedule.subject)
    except ValidationError as error:
        raise NothingToDo(" ".join(error.messages)) from error
    if last and last.version == version:
        raise NothingToDo(f"The data are unchanged since {last.public_id}.")
    known = Member.objects.filter(version=last.version).values("hash") if last else []
    new = version.members.filter(split=Split.TRAIN).exclude(hash__in=known).count()
    if new < schedule.minimum_new:
        raise NothingToDo(f"{new} new examples; {schedule.minimum_new} are needed.")
    about = {"suffix": schedule.suffix, "task": schedule.task, "subject": schedule.subject}
    return run_create(version=version, recipe=schedule.recipe, **about)


def last_due(crontab: CrontabSchedule, now: datetime) -> datetime:
    """The last minute up to now at which the crontab was due."""
    due, here = crontab.schedule, now.astimezone(crontab.timezone).replace(second=0, microsecond=0)
    minutes = (here - timedelta(minutes=back) for back in count())
    return next(
        minute
        for minute in minutes
        if minute.minute in due.minute
        and minute.hour in due.hour
        and minute.isoweekday() % 7 in due.day_of_week
        and minute.day in due.day_of_month
        and minute.month in due.month_of_year
    )
