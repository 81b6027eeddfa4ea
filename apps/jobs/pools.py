"""How many jobs of each queue one worker has in hand, so that no queue's work waits behind another's.

A Celery worker has one pool of threads for all its queues: sixty long answers would fill it, and a search would wait
for one of them to end. So a worker takes no message from a queue of which it has its share in hand.
"""

from collections import Counter
from typing import Any

from kombu.utils.scheduling import round_robin_cycle

from lyo import env

POOLS = {
    "generate": env.GENERATE_THREADS,
    "embed": 16,  # short: a thread is needed while a job is claimed and recorded; the embedder itself takes turns
    "understand": 8,
    "score": 4,
    "evaluate": 6,
    "default": 4,
    "sweep": 2,  # apart from errands that may take minutes: the jobs of dead workers wait for it
}
THREADS = sum(threads for queue, threads in POOLS.items() if queue not in ("default", "sweep"))  # of `generate`


class QueuesWithRoom(round_robin_cycle):  # type: ignore[type-arg] # it is no generic
    """The queues that kombu's next BRPOP asks: in turns, but for those whose pool is full."""

    def consume(self, n: int) -> list[str]:  # type: ignore[override] # as the original does
        held = messages_held()
        return [queue for queue in super().consume(n) if held[queue] < POOLS.get(queue, THREADS)]


def messages_held() -> Counter[Any]:
    """The messages that this worker has taken and not dealt with, by queue."""
    from celery.worker.state import reserved_requests  # of a worker only: the web publishes, and consumes nothing

    while True:
        try:
            return Counter(request.delivery_info.get("routing_key") for request in reserved_requests)
        except RuntimeError:  # one ended meanwhile, on another thread
            continue
