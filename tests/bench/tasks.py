"""The job that does nothing, or takes a nap, and its peers, Celery tasks that do the same."""

import time
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
    time.sleep(job.request.get("nap_s", 0))
    return {"pong": job.request["ping"]}


@shared_task(name="bench.nothing")
def nothing(argument: str) -> None:
    redis.broker().incr(COUNTER)


def nothings_done() -> int:
    return int(redis.broker().get(COUNTER) or 0)


BEGUN = "lyo:bench:begun:{}"


@shared_task(name="bench.nap")
def nap(who: str, seconds: float) -> None:
    redis.broker().rpush(BEGUN.format(who), time.time())
    time.sleep(seconds)


def naps_begun(who: str, all_of: int = 1) -> float | None:
    """When the last of `who`'s began, once all have; the next time they are counted anew."""
    times = redis.broker().lrange(BEGUN.format(who), 0, -1)
    if len(times) < all_of:
        return None
    redis.broker().delete(BEGUN.format(who))
    return float(times[-1])
