"""Probes and metrics, each made to fail for real."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.utils import timezone

from apps.common import redis
from apps.jobs.dispatch import QUEUES
from apps.jobs.models import Job
from lyo import env, ops

SERVERS = ("database", "broker", "cache")
LIMIT_S = 7.5  # two seconds a server, and some for a loaded machine


@pytest.fixture(autouse=True)
def always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request asks the servers anew."""
    monkeypatch.setattr(ops, "FRESH_S", -1.0)
    ops._migrations.cache_clear()


@pytest.fixture
def canaries() -> Iterator[None]:
    """Every queue is being consumed."""
    for queue in QUEUES:
        answer_canary(queue, age=1)
    yield
    redis.broker().delete(*(f"lyo:canary:{queue}" for queue in QUEUES))


@pytest.fixture
def redirect(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Any]:
    """Call with a server and a port to send the stack there."""

    def send(server: str, port: int) -> None:
        if server == "database":
            monkeypatch.setitem(connection.settings_dict, "HOST", "127.0.0.1")
            monkeypatch.setitem(connection.settings_dict, "PORT", port)
        else:
            setattr(settings, f"{server}_url".upper(), f"redis://127.0.0.1:{port}/0")
            getattr(redis, server).cache_clear()

    yield send
    for server in ("broker", "cache"):
        getattr(redis, server).cache_clear()


@pytest.fixture
def closed_port() -> int:
    """A port that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers, as a frozen server does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def answer_canary(queue: str, age: float) -> None:
    redis.broker().set(f"lyo:canary:{queue}", f"{time.time() - age} w")


def make_job(state: str = "queued", kind: str = "chat", queue: str = "generate", **fields: Any) -> Job:
    return Job.objects.create(
        kind=kind, queue=queue, state=state, request={}, max_attempts=5, resend_at=timezone.now(), **fields
    )


def make_running(lease: timedelta, **fields: Any) -> Job:
    lease_end = timezone.now() + lease
    return make_job("running", lease_token=uuid4(), lease_expires_at=lease_end, **{"worker": "w", **fields})


def checks(client: Client, status: int) -> dict[str, Any]:
    start = time.monotonic()
    response = client.get("/readyz")
    assert time.monotonic() - start < LIMIT_S
    assert response.status_code == status
    body = response.json()
    assert body["status"] == ("ready" if status == 200 else "not ready")
    return body["checks"]


def failing(found: dict[str, Any]) -> dict[str, str]:
    return {name: check["detail"] for name, check in found.items() if not check["ok"]}


# --- livez ---


def test_livez_answers_when_everything_is_down(client: Client, redirect: Any, closed_port: int) -> None:
    for server in SERVERS:
        redirect(server, closed_port)
    response = client.get("/livez")
    assert (response.status_code, response.content) == (200, b"ok")


# --- readyz ---


def test_readyz_is_ready_when_all_answer(client: Client, db: None, canaries: None) -> None:
    found = checks(client, 200)
    assert list(found) == [*SERVERS, "migrations", *(f"queue:{queue}" for queue in QUEUES)]
    assert all(check["ok"] for check in found.values())
    assert all(set(check) == {"ok", "detail", "milliseconds"} for check in found.values())
    assert found["queue:embed"]["detail"] == "canary answered 1 s ago"


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("database", {"database": "does not answer (OperationalError)", "migrations": "unknown: no database"}),
        (
            "broker",
            {
                "broker": "does not answer (ConnectionError)",
                **{f"queue:{queue}": "unknown: no broker" for queue in QUEUES},
            },
        ),
        ("cache", {"cache": "does not answer (ConnectionError)"}),
    ],
)
def test_readyz_names_the_server_that_refuses(
    client: Client, db: None, canaries: None, redirect: Any, closed_port: int, server: str, expected: dict[str, str]
) -> None:
    redirect(server, closed_port)
    assert failing(checks(client, 503)) == expected


def test_readyz_does_not_hang_with_frozen_servers(client: Client, db: None, redirect: Any, silent_port: int) -> None:
    for server in SERVERS:
        redirect(server, silent_port)
    assert set(SERVERS) < set(failing(checks(client, 503)))


def test_readyz_tells_no_addresses(client: Client, db: None, canaries: None, redirect: Any, closed_port: int) -> None:
    for server in SERVERS:
        redirect(server, closed_port)
    assert str(closed_port) not in str(checks(client, 503))


def test_readyz_wants_every_migration(client: Client, db: None, canaries: None) -> None:
    applied = MigrationRecorder.Migration.objects.filter(app="tutor")
    rows = list(applied.order_by("id"))
    applied.delete()
    assert failing(checks(client, 503)) == {"migrations": f"{len(rows)} to apply, first tutor.{rows[0].name}"}
    MigrationRecorder.Migration.objects.bulk_create(rows)
    assert failing(checks(client, 200)) == {}


def test_readyz_asks_for_migrations_until_they_are_applied(client: Client, db: None, canaries: None) -> None:
    checks(client, 200)
    MigrationRecorder.Migration.objects.filter(app="tutor").delete()
    checks(client, 200)


def test_a_queue_without_a_canary_is_not_ready(client: Client, db: None, canaries: None) -> None:
    redis.broker().delete("lyo:canary:embed")
    assert failing(checks(client, 503)) == {"queue:embed": "no canary was answered"}


def test_the_web_is_ready_while_nobody_trains(client: Client, db: None, canaries: None) -> None:
    redis.broker().delete("lyo:canary:train")
    assert checks(client, 200)["queue:train"]["detail"] == "no canary was answered"


def test_a_stale_canary_is_not_ready(client: Client, db: None, canaries: None) -> None:
    answer_canary("generate", age=31)
    make_running(timedelta(seconds=-1))
    make_running(timedelta(seconds=5), worker="another")
    assert failing(checks(client, 503)) == {"queue:generate": "the last canary was answered 31 s ago"}


def test_a_busy_queue_is_ready_without_its_canary(client: Client, db: None, canaries: None) -> None:
    answer_canary("generate", age=31)
    make_running(timedelta(seconds=5))
    assert checks(client, 200)["queue:generate"]["detail"] == "busy: no canary, but its worker's jobs are running"


def test_servers_are_asked_once_a_second(
    client: Client, db: None, canaries: None, redirect: Any, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks(client, 200)
    monkeypatch.setattr(ops, "FRESH_S", 60.0)
    redirect("cache", closed_port)
    checks(client, 200)
    monkeypatch.setattr(ops, "FRESH_S", -1.0)
    checks(client, 503)


# --- metrics ---


def scrape(client: Client) -> list[str]:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")
    return response.text.splitlines()


def test_metrics_count_jobs_and_queues(client: Client, db: None, canaries: None) -> None:
    make_job()
    waiting = make_job()
    Job.objects.filter(id=waiting.id).update(created_at=timezone.now() - timedelta(seconds=90))
    make_running(timedelta(seconds=5))
    make_job("failed", kind="embed", queue="embed", finished_at=timezone.now())
    lines = scrape(client)
    assert {line for line in lines if re.match(r"lyo_(jobs|queue_waiting|queue_running)\{", line)} == {
        'lyo_jobs{kind="chat",state="queued"} 2.0',
        'lyo_jobs{kind="chat",state="running"} 1.0',
        'lyo_jobs{kind="embed",state="failed"} 1.0',
        *(f'lyo_queue_waiting{{queue="{queue}"}} {2.0 if queue == "generate" else 0.0}' for queue in QUEUES),
        *(f'lyo_queue_running{{queue="{queue}"}} {1.0 if queue == "generate" else 0.0}' for queue in QUEUES),
    }
    ages = [float(line.split()[1]) for line in lines if line.startswith("lyo_queue_oldest_seconds{")]
    assert ages == [pytest.approx(90, abs=5) if queue == "generate" else 0.0 for queue in QUEUES]
    assert 'lyo_ready{check="queue:generate"} 1.0' in lines


def test_metrics_count_requests(client: Client, db: None, canaries: None) -> None:
    def count() -> float:
        found = (
            re.match(r'django_http_requests_total_by_method_total\{method="GET"\} (\S+)', x) for x in scrape(client)
        )
        return next(float(match[1]) for match in found if match)

    before = count()
    client.get("/livez")
    assert count() == before + 2


def test_metrics_tell_the_memory_of_web(client: Client, db: None, canaries: None) -> None:
    (line,) = [line for line in scrape(client) if line.startswith('lyo_process_resident_bytes{process="web"')]
    assert float(line.split()[1]) == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


def test_metrics_answer_without_postgres(client: Client, db: None, redirect: Any, closed_port: int) -> None:
    redirect("database", closed_port)
    lines = scrape(client)
    assert 'lyo_ready{check="database"} 0.0' in lines
    assert any(line.startswith("django_http_requests_total") for line in lines)
    assert not any(line.startswith("lyo_jobs{") for line in lines)


WORKER = """
import sys
import django
django.setup()
from workers.tasks import engine_watch, metrics
metrics.serve()
metrics.TOKENS.inc(5)
metrics.FIRST_TOKEN.observe(0.3)
engine_watch.GAUGES["running"].set(3)
print("measured", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def worker(tmp_path: Path, closed_port: int) -> Iterator[Any]:
    """A process that has measured, in a metrics directory and on a port of its own."""
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "LYO_METRICS_PORT": str(closed_port)}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "measured\n"
        yield process
        process.kill()


def test_metrics_include_workers_and_forget_the_gauges_of_the_dead(
    client: Client, db: None, worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "METRICS_DIR", str(tmp_path))
    lines = scrape(client)
    assert {"lyo_tokens_total 5.0", "lyo_first_token_seconds_count 1.0", "lyo_engine_running 3.0"} <= set(lines)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    lines = scrape(client)
    assert {"lyo_tokens_total 5.0", "lyo_first_token_seconds_count 1.0"} <= set(lines)
    assert not any(line.startswith("lyo_engine_running ") for line in lines)


def test_a_worker_serves_its_own_metrics(worker: Any, closed_port: int) -> None:
    assert "lyo_tokens_total 5.0" in httpx.get(f"http://127.0.0.1:{closed_port}/metrics").text.splitlines()


def test_a_containers_health_check_runs_without_any_preparation(canaries: None) -> None:
    """In a process of its own, as the container's: only the settings' addresses come from outside."""
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    command = [sys.executable, "-m", "lyo.healthcheck"]
    answered = subprocess.run([*command, "queue:embed"], env=environment, capture_output=True, text=True)
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.startswith("queue:embed: canary answered ")
    redis.broker().delete("lyo:canary:embed")
    silent = subprocess.run([*command, "queue:embed"], env=environment, capture_output=True, text=True)
    assert (silent.returncode, silent.stdout) == (1, "queue:embed: no canary was answered\n")
