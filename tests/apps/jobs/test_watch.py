"""A worker that takes nothing while something waits for it is told from one that is idle, full, or without a broker."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from apps.common import redis
from apps.jobs import watch
from apps.jobs.watch import Consumption
from tests.helpers import until


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(watch, "LOOK_S", 0.05)
    return f"queue-{uuid4()}"


def stalled(consumption: Consumption) -> Callable[[], bool]:
    return lambda: consumption.stalled_s() > 0.2


def stays_well(consumption: Consumption) -> bool:
    """Whether it does not count as stalled for as long as another one would."""
    waited = Consumption([], 1)
    waited._looked_at = float("inf")  # it never looks, so that its time runs
    while not stalled(waited)():
        if stalled(consumption)():
            return False
    return True


def test_messages_that_nobody_takes_are_a_stall_until_one_is_taken(queue: str) -> None:
    consumption = Consumption([queue], threads=1)
    redis.broker().lpush(queue, "a message")
    until(stalled(consumption))
    consumption.moved()
    assert consumption.stalled_s() == 0.0
    until(stalled(consumption))


def test_an_idle_worker_a_full_one_and_one_without_a_broker_are_well(
    queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stays_well(Consumption([queue], threads=1))
    redis.broker().lpush(queue, "a message")
    assert stays_well(Consumption([queue], threads=0))

    class Away:
        def llen(self, queue: str) -> int:
            raise RedisConnectionError

    monkeypatch.setattr(redis, "broker", Away)
    assert stays_well(Consumption([queue], threads=1))
