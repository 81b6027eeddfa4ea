"""The wake-up call: which task and queue serve a kind of job, and how its message is sent.

A message carries a job's id and nothing else. It says that something waits in the queue; whose turn it is, the rows
decide. It may be lost or come twice. What a dead broker did not take is sent again by the sweeper.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

import structlog
from kombu.exceptions import OperationalError

from lyo.celery import app

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Route:
    """limited: whether a user has few of the kind at once, whatever room their queue has."""

    task: str
    queue: str
    limited: bool = True


ROUTES = {
    "chat": Route("workers.generate", "generate"),
    "compare": Route("workers.compare", "evaluate", limited=False),
    "embed": Route("workers.embed", "embed"),
    "enrich": Route("workers.enrich", "score"),
    "evaluate": Route("workers.evaluate", "evaluate", limited=False),
    "fit_feed": Route("workers.fit_feed", "train"),
    "foresee_feed": Route("workers.foresee_feed", "evaluate"),
    "import_adapter": Route("workers.import_adapter", "evaluate", limited=False),
    "score_feed": Route("workers.score_feed", "score"),
    "train": Route("workers.train", "train", limited=False),
    "understand": Route("workers.understand", "understand"),
}
# `default` and `sweep` take the errands that beat sends.
QUEUES = ("default", "embed", "evaluate", "generate", "score", "sweep", "train", "understand")

OUTAGE_S = 1.0  # how long a broker that did not answer is left alone: else each request waits for its time-out
_outage_ends = 0.0


def send(jobs: Iterable[tuple[str, UUID]]) -> bool:
    """Send a message for each `(kind, id)`; False when the broker did not take one, and the sweeper has to."""
    global _outage_ends
    try:
        with app.producer_or_acquire() as producer:  # may wait for its turn, in which the outage may be found
            if time.monotonic() < _outage_ends:
                return False
            for kind, job_id in jobs:
                route = ROUTES[kind]
                app.send_task(route.task, args=[str(job_id)], queue=route.queue, producer=producer)
    except OperationalError as error:
        _outage_ends = time.monotonic() + OUTAGE_S
        logger.warning("broker unreachable, the sweeper will send", error=error)
        return False
    return True
