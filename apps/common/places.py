"""Limits of how many at a time, counted in the cache server; past them the answer is 429 with `Retry-After`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar
from uuid import uuid4

from apps.common import redis
from apps.common.errors import TooManyRequests

RETRY_S = 5

# Members of a sorted set, each scored with the time, by the server's clock, until which it has its place.
# KEYS places. ARGV member, life in milliseconds, how many places. Returns 1 if there was one; a member keeps its own.
ENTER = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""


@dataclass(frozen=True)
class Place:
    """One of the `limit` places that a user has for open streams, in all web processes together.

    It is kept by renewing it, so that the places of a killed process are free again after `LIFE_MS`.
    """

    LIFE_MS: ClassVar[int] = 20_000
    key: str
    member: str
    limit: int

    @classmethod
    @contextmanager
    def taken(cls, user_id: object, limit: int) -> Iterator["Place"]:
        """Take a place, and give it back where what it was for does not begin. Raises `TooManyRequests`."""
        place = cls(f"lyo:places:{user_id}", uuid4().hex, limit)
        if not redis.ask_cache(lambda cache: cache.eval(ENTER, 1, *place._arguments()), otherwise=1):
            detail = f"You have {limit} streams open, which is the most."
            raise TooManyRequests(detail, code="too_many_streams", wait=RETRY_S)
        try:
            yield place
        except BaseException:
            redis.ask_cache(lambda cache: cache.zrem(place.key, place.member), otherwise=0)
            raise

    @staticmethod
    async def keep(places: Iterable["Place"], left: Iterable["Place"]) -> None:
        """Renew `places` and give back those that were left."""
        async with redis.async_cache().pipeline(transaction=False) as pipe:
            for place in places:
                pipe.eval(ENTER, 1, *place._arguments())
            for place in left:
                pipe.zrem(place.key, place.member)
            await pipe.execute()

    def _arguments(self) -> tuple[object, ...]:
        return self.key, self.member, self.LIFE_MS, self.limit
