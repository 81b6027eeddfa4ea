"""A worker that takes nothing while something waits for it is told from one that is idle, full, or without a broker."""

from collections.abc import Callable
from types import SimpleNamespace
from uuid import uuid4

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from apps.common import redis
from apps.jobs import watch
from apps.jobs.metrics import RESIDENT
from apps.jobs.watch import Consumption, Memory
from tests.helpers import resident_mb, until


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(watch, "LOOK_S", 0.05)
    return f"queue-{uuid4()}"


def stalled(consumption: Consumption) -> Callable[[], bool]:
    return lambda: consumption.stalled_s() > 0.2


def stays_well(consumption: Consumption) -> bool:
    """Whether it does not count as stalled for as long as another one would."""
    waited = Consumption(["another"], 1)
    waited._looked_at = float("inf")  # it never looks, so that its time runs
    while not stalled(waited)():
        if stalled(consumption)():
            return False
    return True


def test_messages_that_nobody_takes_are_a_stall_until_one_is_taken(queue: str) -> None:
    consumption = Consumption([queue], threads=1)
    redis.broker().lpush(queue, "a message")
    until(stalled(consumption))
    consumption.moved(request=SimpleNamespace(delivery_info={"routing_key": queue}))
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


def test_another_queue_s_messages_do_not_hide_a_stall_and_ones_that_expire_are_no_stall(queue: str) -> None:
    other = f"{queue}-other"
    consumption = Consumption([queue, other], threads=1)
    redis.broker().lpush(queue, "a message")

    def stalls_beside_another() -> bool:
        consumption.moved(request=SimpleNamespace(delivery_info={"routing_key": other}))
        return stalled(consumption)()

    until(stalls_beside_another)
    redis.broker().lpop(queue)
    until(lambda: not stalled(consumption)())


def test_what_was_freed_goes_back_to_the_system_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "TRIM_S", 0.0)
    memory = Memory()
    memory.name = f"worker-{uuid4()}"
    blocks = [bytes(1000) for _ in range(200_000)]
    pin = bytes(1000)  # above them in the heap, which therefore cannot shrink
    blocks.clear()
    held = resident_mb().own
    memory.look()
    assert held - resident_mb().own > 100
    assert RESIDENT.labels(memory.name)._value.get() > len(pin)
