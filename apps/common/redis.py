"""Clients of the two Redis servers: the broker, which also keeps the token streams, and the cache.

They give up soon: a server that is down or frozen must never hold up a request. They are Any to the type checker: the
library's types cover bytes, text, both protocols and pipelines at once.
"""

import asyncio
from functools import cache as cached
from typing import Any
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from django.conf import settings
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

OPTIONS: dict[str, Any] = {
    "decode_responses": True,
    "protocol": 2,
    "socket_connect_timeout": 1,
    "socket_timeout": 2,  # longer than any command blocks
    "health_check_interval": 10,
    "max_connections": 10_000,  # each open stream waits on a connection of its own; the server has the same limit
}
# Once more on a connection that broke while it was idle. A timeout is not tried again: that would double the wait.
RETRY: dict[str, Any] = {"backoff": ConstantBackoff(0.05), "retries": 1, "supported_errors": (RedisConnectionError,)}

_async_brokers: WeakKeyDictionary[asyncio.AbstractEventLoop, redis.asyncio.Redis] = WeakKeyDictionary()


@cached
def broker() -> Any:
    return redis.Redis.from_url(settings.BROKER_URL, retry=Retry(**RETRY), **OPTIONS)


@cached
def cache() -> Any:
    return redis.Redis.from_url(settings.CACHE_URL, retry=Retry(**RETRY), **OPTIONS)


def async_broker() -> Any:
    """The running event loop's client: connections belong to the loop that opened them."""
    loop = asyncio.get_running_loop()
    if loop not in _async_brokers:
        _async_brokers[loop] = redis.asyncio.Redis.from_url(settings.BROKER_URL, retry=AsyncRetry(**RETRY), **OPTIONS)
    return _async_brokers[loop]
