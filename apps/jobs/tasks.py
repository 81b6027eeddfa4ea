"""What beat asks of the `default` worker, and the canary that every worker answers."""

import time
from typing import Any

from celery import Task, shared_task

from apps.common import redis
from apps.jobs import services

CANARY_TTL_S = 3600


@shared_task(name="jobs.sweep")
def sweep() -> None:
    """Requeue the jobs of dead workers, resend lost messages, end what waited past its deadline."""
    services.job_requeue_expired()
    services.job_fail_overdue()
    services.job_resend()


@shared_task(name="jobs.delete_expired")
def delete_expired() -> None:
    services.job_delete_expired()


@shared_task(name="jobs.canary", bind=True)
def canary(self: Task[Any, Any], queue: str) -> None:
    """Prove that `queue` is being consumed: a worker may be alive, and answer pings, and still take nothing."""
    redis.broker().set(f"lyo:canary:{queue}", f"{time.time()} {self.request.hostname}", ex=CANARY_TTL_S)
