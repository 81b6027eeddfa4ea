"""What beat asks of the `default` worker."""

import structlog
from celery import shared_task

from apps.common.examples import sources
from apps.training.models import Schedule
from apps.training.services import data as services
from apps.training.services import erasure, schedules

logger = structlog.get_logger(__name__)


@shared_task(name="training.collect")
def collect() -> None:
    """Make examples of what consenting learners did since the last time."""
    for source in sources:
        if outcomes := services.examples_collect(source=source):
            logger.info("examples were collected", source=source, **outcomes)


@shared_task(name="training.look")
def look(schedule_id: str) -> None:
    """What beat asks when a schedule is due."""
    schedule = Schedule.objects.filter(id=schedule_id, enabled=True).select_related("crontab").first()
    if schedule is not None:
        slot = schedules.schedule_look(schedule=schedule)
        logger.info("schedule was due", schedule=schedule.name, run=str(slot.run_id), outcome=slot.outcome)


@shared_task(name="training.renew")
def renew() -> None:
    """Queue anew the runs whose data were erased."""
    for run in erasure.runs_renew():
        logger.info("a run is repeated without erased examples", run=run.public_id, replaces=str(run.replaces_id))
