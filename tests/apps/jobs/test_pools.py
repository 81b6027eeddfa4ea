"""No queue's work waits behind another's: a worker asks no queue of which it has its share in hand."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from celery.worker import state

from apps.jobs.dispatch import QUEUES
from apps.jobs.pools import POOLS, THREADS, QueuesWithRoom


@pytest.fixture
def take() -> Iterator[object]:
    """Take messages of a queue, as a worker's consumer does."""
    held: list[object] = []

    class Message(SimpleNamespace):
        __hash__ = object.__hash__

    def take(queue: str, count: int) -> None:
        held.extend(Message(delivery_info={"routing_key": queue}) for _ in range(count))
        state.reserved_requests.update(held)

    yield take
    state.reserved_requests.difference_update(held)


def test_a_queue_whose_pool_is_full_is_not_asked_and_the_others_are(take) -> None:
    cycle = QueuesWithRoom()
    cycle.update(["generate", "embed", "understand"])
    take("generate", POOLS["generate"] - 1)
    assert cycle.consume(3) == ["generate", "embed", "understand"]
    take("generate", 1)
    take("embed", 3)
    assert cycle.consume(3) == ["embed", "understand"]
    cycle.rotate("embed")
    assert cycle.consume(3) == ["understand", "embed"]


def test_there_is_a_thread_for_every_job_that_the_pools_let_in() -> None:
    errands = POOLS["default"] + POOLS["sweep"]
    assert sum(POOLS.values()) == THREADS + errands
    assert set(POOLS) < set(QUEUES)
