"""The page of engines, from the reports of workers that the tests play."""

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from apps.common import redis
from apps.inference.selectors import ENGINE_KEY, engine_list
from apps.users.models import Role, User
from tests.helpers import until
from workers.protocols import AdapterStats, EngineStats
from workers.tasks.engine_watch import EngineWatch

ENGINES = "/admin/engines/"
DIGEST = "0123456789abcdef" * 4
IDLE = EngineStats(waiting=0, running=0, tokens_generated=0, batch_limit=32)


@pytest.fixture
def viewer(db: None) -> Client:
    """Staff who may look at jobs and do no more."""
    user = User.objects.create_user("viewer", "viewer@example.com", "a long passphrase", role=Role.STAFF)
    user.user_permissions.add(Permission.objects.get(codename="view_job"))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture(autouse=True)
def no_reports() -> Iterator[None]:
    yield
    redis.cache.cache_clear()
    for key in redis.cache().keys(f"{ENGINE_KEY}*"):
        redis.cache().delete(key)


def watch(worker: str, digest: str = DIGEST) -> EngineWatch:
    engine: Any = None
    about = {"model": "gemma-3-270m", "digest": digest, "device": "cpu", "dtype": "bfloat16"}
    return EngineWatch(engine, worker=worker, about=lambda: about)


def rows(client: Client) -> list[Any]:
    response = client.get(ENGINES)
    assert response.status_code == 200
    return response.context["table"]["rows"]


def test_each_worker_has_a_row_with_its_adapters(viewer: Client) -> None:
    busy = watch("generate@a")
    busy.show(IDLE, 0.0)
    adapters = (
        AdapterStats("math@11", rank=16, megabytes=3.52, pinned=True, running=2, last_used=time.time() - 12),
        AdapterStats("code@22", rank=8, megabytes=1.76, pinned=False, running=0, last_used=time.time() - 75),
    )
    stats = replace(IDLE, running=3, waiting=2, tokens_generated=150, prompt_tokens=400, cached_tokens=300)
    busy.show(replace(stats, kv_tokens=2000, kv_retained_tokens=500, kv_capacity_tokens=8000, adapters=adapters), 2.0)
    watch("generate@b").show(IDLE, 0.0)

    first, second = rows(viewer)
    worker, model, device, up, *figures = first["cols"]
    assert worker.startswith("generate@a, process ")
    assert (model, device) == ("gemma-3-270m 0123456789ab", "cpu, bfloat16")
    assert up.endswith(" s")
    assert figures == ["3 of 32", 2, "75.0", "25% used, 6% kept", "75%"]
    assert [row[:-1] for row in first["table"]["rows"]] == [
        ["math@11", 16, "3.5", "yes", 2],
        ["code@22", 8, "1.8", "no", 0],
    ]
    assert [row[-1] for row in first["table"]["rows"]] == ["12 s ago", "0:01:15 ago"]
    assert second["cols"][4:] == ["0 of 32", 0, "0.0", "- used, - kept", "-"]
    assert "table" not in second
    page = viewer.get(ENGINES).text
    for text in ("generate@b, process", "math@11", "25% used, 6% kept"):
        assert text in page


def test_a_model_server_has_its_own_name_and_its_trouble_is_shown(viewer: Client) -> None:
    watch("generate@a", digest="remote:a-long-name").show(replace(IDLE, waiting=3, trouble="it answers 503"), 0.0)
    ((_, model, _, _, _, waiting, *_),) = (row["cols"] for row in rows(viewer))
    assert (model, waiting) == ("gemma-3-270m remote:a-long-name", "3: it answers 503")


def test_a_worker_that_falls_silent_vanishes(viewer: Client) -> None:
    watch("generate@a").show(IDLE, 0.0)
    assert len(rows(viewer)) == 1
    (key,) = redis.cache().keys(f"{ENGINE_KEY}*")
    redis.cache().pexpire(key, 1)
    until(lambda: not engine_list())
    assert rows(viewer) == []
    assert "No engine is running" in viewer.get(ENGINES).text


def test_without_the_cache_server_the_page_says_so(viewer: Client, settings: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings.CACHE_URL = "redis://{}:{}/0".format(*server.getsockname())
    redis.cache.cache_clear()
    response = viewer.get(ENGINES)
    assert response.status_code == 200
    assert "The cache server does not answer" in response.text


def test_the_page_is_for_staff_who_may_see_jobs(viewer: Client, client: Client) -> None:
    assert f'href="{ENGINES}"' in viewer.get("/admin/").text
    User.objects.get(username="viewer").user_permissions.clear()
    assert viewer.get(ENGINES).status_code == 403
    assert f'href="{ENGINES}"' not in viewer.get("/admin/").text
    client.force_login(User.objects.create_user("ann", "ann@example.com", "a long passphrase"))
    response = client.get(ENGINES)
    assert (response.status_code, response["Location"]) == (302, f"/admin/login/?next={ENGINES}")
