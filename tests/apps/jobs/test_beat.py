"""Any number of beats may run: one sends, and another follows it when it falls silent or ends."""

from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from django.db import OperationalError
from django_celery_beat.schedulers import DatabaseScheduler

from apps.common import redis
from apps.jobs import beat
from apps.jobs.beat import KEY, STANDBY_S, LeasedScheduler
from apps.jobs.dispatch import QUEUES
from lyo.celery import app
from tests.helpers import until

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
    for _ in range(3):
        until(lambda: sends(first))
        assert not sends(second)


def test_a_silent_beat_is_followed_by_another_and_stands_by_when_it_wakes(
    beats: tuple[LeasedScheduler, LeasedScheduler],
) -> None:
    first, second = beats
    until(lambda: sends(first))
    assert 0 < redis.broker().pttl(KEY) <= beat.LEASE_MS
    redis.broker().delete(KEY)  # as its end does
    for _ in range(3):
        until(lambda: sends(second))
        assert not sends(first)


def test_a_beat_that_ends_leaves_the_schedule_to_the_next_at_once(
    beats: tuple[LeasedScheduler, LeasedScheduler],
) -> None:
    first, second = beats
    until(lambda: sends(first))
    first.close()
    until(lambda: sends(second), beat.LEASE_MS / 1000)


def test_a_beat_whose_database_is_away_stands_by_and_reads_the_schedule_anew(
    beats: tuple[LeasedScheduler, LeasedScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = beats
    until(lambda: sends(first))
    with monkeypatch.context() as patch:
        patch.setattr(DatabaseScheduler, "tick", Mock(side_effect=OperationalError("gone")))
        assert first.tick() == STANDBY_S
    until(lambda: sends(first))
