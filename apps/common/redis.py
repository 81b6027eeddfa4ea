"""Clients of the two Redis servers: the broker, which also keeps the token streams, and the cache.

They give up soon: a server that is down or frozen must never hold up a request. They are Any to the type checker: the
library's types cover bytes, text, both protocols and pipelines at once.
"""

import asyncio
import time
from collections.abc import Callable
from functools import cache as cached
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
import structlog
from django.conf import settings
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

logger = structlog.get_logger(__name__)
T = TypeVar("T")

OUTAGE_S = 1.0  # how long an unreachable cache server is left alone, so that not every request waits for its time-out
OPTIONS: dict[str, Any] = {
    "decode_responses": True,
    "protocol": 2,
    "socket_connect_timeout": 1,
    "socket_timeout": 2,  # longer than any command blocks
    "health_check_interval": 10,
    "max_connections": 1_000,  # more than the threads of a process: streams share one
}
# Once more on a connection that broke while it was idle. A timeout is not tried again: that would double the wait.
RETRY: dict[str, Any] = {"backoff": ConstantBackoff(0.05), "retries": 1, "supported_errors": (RedisConnectionError,)}

_async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Any]] = WeakKeyDictionary()


@cached
def broker() -> Any:
    return redis.Redis.from_url(settings.BROKER_URL, retry=Retry(**RETRY), **OPTIONS)


@cached
def cache() -> Any:
    return redis.Redis.from_url(settings.CACHE_URL, retry=Retry(**RETRY), **OPTIONS)


_outage_ends = 0.0


def ask_cache(command: Callable[[Any], T], otherwise: T) -> T:
    """What `command(cache())` returns; `otherwise` where the server does not answer, and for a second after that."""
    global _outage_ends
    if time.monotonic() < _outage_ends:
        return otherwise
    try:
        return command(cache())
    except RedisError as error:
        _outage_ends = time.monotonic() + OUTAGE_S
        logger.warning("the cache server does not answer: limits are off, and all is read anew", error=error)
        return otherwise


def async_broker() -> Any:
    return _async_client(settings.BROKER_URL)


def async_cache() -> Any:
    return _async_client(settings.CACHE_URL)


def _async_client(url: str) -> Any:
    """The running event loop's client: connections belong to the loop that opened them."""
    clients = _async_clients.setdefault(asyncio.get_running_loop(), {})
    if url not in clients:
        clients[url] = redis.asyncio.Redis.from_url(url, retry=AsyncRetry(**RETRY), **OPTIONS)
    return clients[url]
