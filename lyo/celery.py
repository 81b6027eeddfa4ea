"""The Celery app. The beat schedule is in settings; which task and queue serve a job, `jobs.dispatch` says."""

import os
from types import TracebackType
from typing import Any

import structlog
from celery import Celery
from celery.signals import task_failure, task_internal_error

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lyo.settings")
os.environ["LYO_ROLE"] = "worker"  # where Celery comes first; elsewhere, settings have been read

app = Celery("lyo")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

logger = structlog.get_logger(__name__)


@task_failure.connect
@task_internal_error.connect
def tell_failure(
    sender: Any, task_id: str, exception: BaseException, traceback: TracebackType | None, **_: Any
) -> None:
    """In the place of Celery's own line, which has the task's arguments and the exception's text.

    What a task `throws` on purpose has been told.
    """
    if isinstance(exception, tuple(sender.throws or ())):
        return
    logger.error("task failed", task=sender.name, task_id=task_id, exc_info=(type(exception), exception, traceback))
