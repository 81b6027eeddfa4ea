"""Celery's beat, of which any number may run: one of them sends, and the next takes over when that one is silent."""

import time
from typing import Any
from uuid import uuid4

import structlog
from django.db import DatabaseError, InterfaceError
from django_celery_beat.schedulers import DatabaseScheduler
from redis.exceptions import RedisError

from apps.common import redis

logger = structlog.get_logger(__name__)

KEY = "lyo:beat"
LEASE_MS = 5_000  # a beat that is silent for so long is followed by another
STANDBY_S = 1.0

# KEYS lease. ARGV name, milliseconds. Returns 1 for whoever has the lease now, which is renewed.
LEAD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# KEYS lease. ARGV name.
RESIGN = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class LeasedScheduler(DatabaseScheduler):
    """The schedule of the database, as long as this beat holds the lease on it.

    Two may send the same task for a moment, when a leader that was silent goes on: every task bears that.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._name = str(uuid4())
        self._leading = False
        self.ticked_at = time.monotonic()
        super().__init__(*args, **kwargs)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due and return the seconds until the next tick; on standby, nothing is."""
        self.ticked_at = time.monotonic()
        if not self._leads():
            return STANDBY_S
        try:
            wait_s: float = super().tick(*args, **kwargs)
        except (DatabaseError, InterfaceError) as error:
            logger.warning("the schedule cannot be read", error=error)
            self._read_anew()
            return STANDBY_S
        return wait_s

    def close(self) -> None:
        super().close()
        try:
            redis.broker().eval(RESIGN, 1, KEY, self._name)
        except RedisError as error:
            logger.warning("the lease on the schedule runs out", error=error)

    def _read_anew(self) -> None:
        self._heap, self._initial_read = None, True

    def _leads(self) -> bool:
        try:
            leads = bool(redis.broker().eval(LEAD, 1, KEY, self._name, LEASE_MS))
        except RedisError as error:  # nothing can be sent either
            logger.warning("the broker does not answer", error=error)
            return False
        if leads and not self._leading:
            logger.info("this beat sends")
            self._read_anew()  # what ran meanwhile, the rows say
        self._leading = leads
        return leads
