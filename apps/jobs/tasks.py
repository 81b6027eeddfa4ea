"""What beat asks of the `default` worker, and the canary that every worker answers."""

import time
from typing import Any

import structlog
from celery import Task, shared_task

from apps.common import redis
from apps.jobs import services, watch  # noqa: F401 - Celery's signals start it
from lyo import env

logger = structlog.get_logger(__name__)

CANARY_TTL_S = 3600
SWEPT = "lyo:swept"  # there while the last sweep is less than a lease ago


@shared_task(name="jobs.sweep")
def sweep() -> None:
    """Requeue the jobs of dead workers, end what is past its deadline, resend lost messages."""
    failed = False
    for errand in (after_a_pause, services.job_requeue_expired, services.job_fail_overdue, services.job_resend):
        try:
            errand()
        except Exception:  # one that fails must not keep the others from their work
            failed = True
            logger.exception("sweep failed", errand=errand.__name__)
    if not failed:
        redis.broker().set(SWEPT, 1, px=int(env.LEASE_S * 1000))


def after_a_pause() -> None:
    """Prolong leases where nobody has swept for as long as one lasts."""
    if not redis.broker().exists(SWEPT):
        services.leases_prolong()


@shared_task(name="jobs.delete_expired")
def delete_expired() -> None:
    """What is past its retention: whole jobs, the keys of others, and what is large in their results."""
    services.job_delete_expired()
    services.keys_forget()
    services.large_results_shrink()


@shared_task(name="jobs.canary", bind=True)
def canary(self: Task[Any, Any], queue: str) -> None:
    """Prove that `queue` is being consumed: a worker may be alive, and answer pings, and still take nothing."""
    redis.broker().set(f"lyo:canary:{queue}", f"{time.time()} {self.request.hostname}", ex=CANARY_TTL_S)
