"""Any number of beats may run: one sends, and another follows it when it falls silent or ends."""

from collections.abc import Iterator

import pytest

from apps.common import redis
from apps.jobs import beat
from apps.jobs.beat import KEY, STANDBY_S, LeasedScheduler
from apps.jobs.dispatch import QUEUES
from lyo.celery import app

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LeasedScheduler, LeasedScheduler]]:
    redis.broker().delete(KEY, *QUEUES)
    pair = LeasedScheduler(app=app), LeasedScheduler(app=app)
    yield pair
    for scheduler in pair:
        scheduler._finalize.cancel()  # else it writes to the database when the tests are over
    redis.broker().delete(KEY, *QUEUES)


def sends(scheduler: LeasedScheduler) -> bool:
    """Whether a task that is due goes out with its next tick."""
    before = sum(redis.broker().llen(queue) for queue in QUEUES)
    scheduler.tick()
    return sum(redis.broker().llen(queue) for queue in QUEUES) == before + 1


def test_of_two_beats_one_sends(beats: tuple[LeasedScheduler, LeasedScheduler]) -> None:
    first, second = beats
    assert sends(first)
    assert second.tick() == STANDBY_S
    assert not sends(second)
    assert sends(first)


def test_a_silent_beat_is_followed_by_another_and_stands_by_when_it_wakes(
    beats: tuple[LeasedScheduler, LeasedScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = beats
    assert sends(first)
    assert 0 < redis.broker().pttl(KEY) <= beat.LEASE_MS
    redis.broker().delete(KEY)  # as its end does
    assert sends(second)
    assert not sends(first)


def test_a_beat_that_ends_leaves_the_schedule_to_the_next_at_once(
    beats: tuple[LeasedScheduler, LeasedScheduler],
) -> None:
    first, second = beats
    assert sends(first)
    first.close()
    assert sends(second)
