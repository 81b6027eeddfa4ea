"""What load balancers, orchestrators and Prometheus ask. Open to all, so nothing here hangs, fails or costs much.

However often it is asked, the servers behind are asked once a second.
"""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, ParamSpec, TypeVar

import psutil
import structlog
from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from apps.common import redis
from apps.common.database import patient
from apps.jobs.dispatch import QUEUES
from apps.jobs.metrics import RESIDENT
from apps.jobs.models import Job, State
from apps.jobs.selectors import job_counts, queue_depths
from lyo import env

logger = structlog.get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

SPARED = ("queue:train",)  # the web is ready without: training waits for its worker

FRESH_S = 1.0
CONNECT_S = 2  # libpq's least
CANARY_STALE_S = 30.0  # six canaries lost


class NotReady(Exception):
    """Why a check fails, in words that anybody may read."""


@dataclass(frozen=True)
class Check:
    ok: bool
    detail: str
    milliseconds: float = 0.0


def shared(per_second: float = 0) -> Callable[[Callable[[], T]], Callable[[], T]]:
    """Share one answer among all who ask within a second; who asks meanwhile waits for it.

    It is kept longer where it took longer: `per_second` seconds for each second that it took.
    """

    def decorator(function: Callable[[], T]) -> Callable[[], T]:
        lock = Lock()
        answers: list[tuple[T, float, float]] = []  # the last, when it was there, and how long it took

        @functools.wraps(function)
        def answer() -> T:
            with lock:
                if answers:
                    last, since, took = answers[0]
                    if time.monotonic() - since <= FRESH_S * max(1.0, took * per_second):
                        return last
                start = time.monotonic()
                found = function()
                answers[:] = [(found, time.monotonic(), time.monotonic() - start)]
                return found

        return answer

    return decorator


# --- probes ---


def livez(request: HttpRequest) -> HttpResponse:
    """The process answers: 200, whatever else is down."""
    return HttpResponse("ok", content_type="text/plain")


def readyz(request: HttpRequest) -> JsonResponse:
    """Whether a request would be served: 200 or 503, and each check with `ok`, `detail` and `milliseconds`."""
    checks = readiness()
    ready = all(check.ok for name, check in checks.items() if name not in SPARED)
    body = {
        "status": "ready" if ready else "not ready",
        "checks": {name: asdict(check) for name, check in checks.items()},
    }
    return JsonResponse(body, status=200 if ready else 503)


@shared()
def readiness() -> dict[str, Check]:
    """Every check by name, in about six seconds at worst: each server gets two."""
    database = _check("database", _database)
    broker = _check("broker", redis.broker().ping)
    checks = {"database": database, "broker": broker, "cache": _check("cache", redis.cache().ping)}
    checks["migrations"] = _check("migrations", _migrations) if database.ok else Check(False, "unknown: no database")
    for queue in QUEUES:
        name = f"queue:{queue}"
        checks[name] = _check(name, _queue, queue, database) if broker.ok else Check(False, "unknown: no broker")
    return checks


def _check(name: str, probe: Callable[P, str | bool], *args: P.args, **kwargs: P.kwargs) -> Check:
    start = time.perf_counter()
    try:
        ok, answer = True, probe(*args, **kwargs)
        detail = answer if isinstance(answer, str) else "answers"
    except NotReady as reason:
        ok, detail = False, str(reason)
    except Exception as error:  # its text may hold addresses and names, which are for the log
        logger.warning("check failed", check=name, error=error)
        ok, detail = False, f"does not answer ({type(error).__name__})"
    return Check(ok, detail, round((time.perf_counter() - start) * 1000, 1))


def _database() -> str:
    # Past the pool, which would wait longer for a server that refuses or is frozen.
    with patient(CONNECT_S).connect(**{**connection.get_connection_params(), "connect_timeout": CONNECT_S}) as direct:
        direct.execute("SELECT 1")
    return "answers"


@functools.cache  # an exception is not cached: once true, it stays true for this code
def _migrations() -> str:
    executor = MigrationExecutor(connection)
    pending = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if pending:
        raise NotReady(f"{len(pending)} to apply, first {pending[0][0]}")
    return "applied"


def _queue(queue: str, database: Check) -> str:
    """A worker takes from the queue: it has answered the canary of late, or is so busy that the canary must wait."""
    answered, _, worker = (redis.broker().get(f"lyo:canary:{queue}") or "").partition(" ")
    if not answered:
        raise NotReady("no canary was answered")
    age = time.time() - float(answered)
    if age < CANARY_STALE_S:
        return f"canary answered {age:.0f} s ago"
    if database.ok and Job.objects.filter(worker=worker, state=State.RUNNING, lease_expires_at__gt=Now()).exists():
        return "busy: no canary, but its worker's jobs are running"
    raise NotReady(f"the last canary was answered {age:.0f} s ago")


# --- metrics ---


def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus text: HTTP, the workers of this machine, readiness, and the jobs as they are in Postgres now.

    However often it is asked, it takes a twentieth of a core at most.
    """
    return HttpResponse(_exposition(), content_type=CONTENT_TYPE_LATEST)


@shared(per_second=20)
def _exposition() -> bytes:
    RESIDENT.labels("web").set(psutil.Process().memory_info().rss)  # of each web process when it was asked last
    registry = CollectorRegistry()
    if env.METRICS_DIR:
        _bury_dead(env.METRICS_DIR)
        MultiProcessCollector(registry, env.METRICS_DIR)
    else:
        registry.register(REGISTRY)
    registry.register(ServerCollector())
    return generate_latest(registry)


class ServerCollector(Collector):
    """Reads the servers when it is scraped. Where Postgres is down, `lyo_ready` says so and the jobs are left out."""

    def collect(self) -> Iterator[Metric]:
        checks = readiness()
        ready = GaugeMetricFamily("lyo_ready", "1 where a check of /readyz passes.", labels=["check"])
        for name, check in checks.items():
            ready.add_metric([name], check.ok)
        yield ready
        if not checks["database"].ok:
            return
        try:
            counts, depths = _job_figures()
        except (DatabaseError, InterfaceError) as error:
            logger.warning("jobs not counted", error=error)
            return
        jobs = GaugeMetricFamily("lyo_jobs", "Jobs by kind and state.", labels=["kind", "state"])
        for (kind, state), count in counts.items():
            jobs.add_metric([kind, state], count)
        waiting = GaugeMetricFamily("lyo_queue_waiting", "Jobs that no worker has taken.", labels=["queue"])
        running = GaugeMetricFamily("lyo_queue_running", "Jobs in the hands of workers.", labels=["queue"])
        oldest = GaugeMetricFamily("lyo_queue_oldest_seconds", "Age of the oldest waiting job.", labels=["queue"])
        for queue in QUEUES:
            depth = depths.get(queue, {"waiting": 0, "running": 0, "oldest": None})
            waiting.add_metric([queue], depth["waiting"])
            running.add_metric([queue], depth["running"])
            age = (timezone.now() - depth["oldest"]).total_seconds() if depth["oldest"] else 0
            oldest.add_metric([queue], age)
        yield from (jobs, waiting, running, oldest)


@shared()
def _job_figures() -> tuple[dict[tuple[str, str], int], dict[str, dict[str, Any]]]:
    return job_counts(), queue_depths()


def _bury_dead(directory: str) -> None:
    """Forget the gauges of processes that were killed; their counters stay, for a counter must not fall."""
    for file in Path(directory).glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid, directory)
