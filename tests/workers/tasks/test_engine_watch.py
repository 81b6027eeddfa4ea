"""What an engine does is seen by Prometheus, and by the admin through the cache server."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from apps.common import redis
from apps.inference.selectors import ENGINE_KEY, engine_list
from workers.protocols import AdapterStats, EngineStats
from workers.tasks.engine_watch import REPORT_S, EngineWatch

STATS = EngineStats(
    waiting=2,
    running=3,
    tokens_generated=100,
    batch_limit=8,
    prompt_tokens=400,
    cached_tokens=300,
    steps=40,
    prefill_seconds=0.5,
    decode_seconds=2.0,
    kv_tokens=1000,
    kv_retained_tokens=500,
    kv_capacity_tokens=4000,
    crashes=1,
    adapters=(AdapterStats("math@0123", rank=16, megabytes=3.5, pinned=True, running=2, last_used=1_700_000_000.0),),
)


@pytest.fixture(autouse=True)
def no_reports() -> Iterator[None]:
    yield
    redis.cache.cache_clear()
    for key in redis.cache().keys(f"{ENGINE_KEY}*"):
        redis.cache().delete(key)


def watch(worker: str = "generate@test") -> EngineWatch:
    """Of no engine: the tests say what it would have said."""
    engine: Any = None
    about = {"model": "gemma", "digest": "abcd", "device": "cpu", "dtype": "float32"}
    return EngineWatch(engine, worker=worker, about=lambda: about)


def measured() -> dict[str, float]:
    return {sample.name: sample.value for metric in REGISTRY.collect() for sample in metric.samples}


def test_gauges_show_what_the_engine_holds_now() -> None:
    watch().show(STATS, 0.0)
    gauges = {
        "lyo_engine_running": 3,
        "lyo_engine_waiting": 2,
        "lyo_engine_batch_limit": 8,
        "lyo_engine_available": 1,
        "lyo_engine_kv_tokens": 1000,
        "lyo_engine_kv_retained_tokens": 500,
        "lyo_engine_kv_capacity_tokens": 4000,
        "lyo_engine_adapters": 1,
    }
    assert gauges.items() <= measured().items()
    watch().show(replace(STATS, running=0, adapters=()), 1.0)
    assert (gauges | {"lyo_engine_running": 0, "lyo_engine_adapters": 0}).items() <= measured().items()


def test_counters_grow_by_what_was_done_since_the_last_look() -> None:
    names = ("steps", "prompt_tokens", "cached_tokens", "prefill_seconds", "decode_seconds", "crashes")

    def counted() -> list[float]:
        now = measured()
        return [now[f"lyo_engine_{name}_total"] for name in names]

    start = counted()
    own = watch()
    own.show(STATS, 0.0)
    own.show(STATS, 1.0)
    assert [now - before for now, before in zip(counted(), start, strict=True)] == [40, 400, 300, 0.5, 2.0, 1]
    own.show(replace(STATS, steps=41, prompt_tokens=450, decode_seconds=2.25), 2.0)
    assert [now - before for now, before in zip(counted(), start, strict=True)] == [41, 450, 300, 0.5, 2.25, 1]


def test_the_speed_is_that_of_the_last_five_seconds() -> None:
    own = watch()
    for second, tokens in enumerate((0, 0, 0, 0, 0, 50, 150, 250)):
        own.show(replace(STATS, tokens_generated=tokens), float(second))
        (report,) = engine_list()
        assert report["tokens_per_second"] == (tokens / 5 if second else 0)


def test_reports_of_all_workers_are_read_and_expire() -> None:
    watch("generate@b").show(replace(STATS, running=1), 0.0)
    watch("generate@a").show(STATS, 0.0)
    first, second = engine_list()
    assert [first["worker"], second["worker"]] == ["generate@a", "generate@b"]
    assert [first["stats"]["running"], second["stats"]["running"]] == [3, 1]
    assert first["stats"]["adapters"] == [
        {"name": "math@0123", "rank": 16, "megabytes": 3.5, "pinned": True, "running": 2, "last_used": 1_700_000_000.0}
    ]
    assert {name: first[name] for name in ("model", "digest", "device", "dtype")} == {
        "model": "gemma",
        "digest": "abcd",
        "device": "cpu",
        "dtype": "float32",
    }
    assert first["at"] >= first["started_at"]
    (key,) = redis.cache().keys(f"{ENGINE_KEY}generate@a:*")
    assert REPORT_S - 1 <= redis.cache().ttl(key) <= REPORT_S


def test_an_engine_is_measured_while_the_cache_server_is_away(settings: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings.CACHE_URL = "redis://{}:{}/0".format(*server.getsockname())
    redis.cache.cache_clear()
    watch().show(replace(STATS, waiting=77), 0.0)
    assert measured()["lyo_engine_waiting"] == 77
