"""What beat asks of the `default` worker."""

import structlog
from celery import shared_task

from apps.common.examples import sources
from apps.training.services import data as services

logger = structlog.get_logger(__name__)


@shared_task(name="training.collect")
def collect() -> None:
    """Make examples of what consenting learners did since the last time."""
    for source in sources:
        if outcomes := services.examples_collect(source=source):
            logger.info("examples were collected", source=source, **outcomes)
