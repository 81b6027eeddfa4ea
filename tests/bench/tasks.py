"""The job that does nothing, and its peer, the Celery task that does nothing."""

from typing import Any

from celery import shared_task

from apps.common import redis
from apps.jobs.dispatch import ROUTES, Route
from workers.tasks.claimed import JobRun, job_task

COUNTER = "lyo:bench:done"
QUEUE = "bench"
ROUTES["ping"] = Route("bench.ping", QUEUE)


@job_task("bench.ping")
def ping(job: JobRun) -> dict[str, Any]:
    return {"pong": job.request["ping"]}


@shared_task(name="bench.nothing")
def nothing(argument: str) -> None:
    redis.broker().incr(COUNTER)


def nothings_done() -> int:
    return int(redis.broker().get(COUNTER) or 0)
