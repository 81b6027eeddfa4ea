import asyncio
import time
from uuid import uuid4

import pytest

from apps.common import redis


def test_each_event_loop_has_a_client_of_its_own() -> None:
    async def roundtrip() -> int:
        client = redis.async_broker()
        assert client is redis.async_broker()
        name = uuid4().hex
        await client.set(name, "Größe", ex=5)
        assert await client.get(name) == "Größe"
        await client.aclose()
        return id(client)

    assert asyncio.run(roundtrip()) is not None
    assert asyncio.run(roundtrip()) is not None


def test_a_connection_that_broke_while_idle_is_replaced() -> None:
    client = redis.cache()
    client.ping()
    client.client_kill_filter(_type="normal", skipme=False)
    start = time.monotonic()
    assert client.ping()
    assert time.monotonic() - start < 1


def test_the_two_servers_are_two() -> None:
    name = uuid4().hex
    redis.broker().set(name, 1, ex=5)
    assert redis.cache().get(name) is None
    with pytest.raises(Exception, match="WRONGTYPE"):
        redis.broker().xadd(name, {"a": 1})
