"""Nobody waits for ever for Postgres: on a server of its own, which can be frozen."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from django.db import connection, transaction
from django.db.utils import OperationalError
from psycopg_pool import ConnectionPool

from apps.common.database import ALIVE_S, PatientConnection, patient
from lyo import embedded
from lyo.processes import Console, Supervisor
from tests.helpers import frozen

PATIENCE_S = 0.5


class Server:
    def __init__(self, home: Path) -> None:
        self.log = (home / "log").open("w")
        self.supervisor = Supervisor(say=Console(self.log.fileno()))
        redis = {"LYO_BROKER_URL": "redis://broker", "LYO_CACHE_URL": "redis://cache"}
        self.supervisor.start(*embedded.prepare(home, redis))
        self.url = embedded.read_local(home)["database_url"]
        self.pid = self.supervisor.pid("postgres") or 0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    home = Path(os.environ["LYO_HOME"]) / "frozen"
    home.mkdir(exist_ok=True)
    server = Server(home)
    yield server
    server.supervisor.stop()
    server.log.close()


def test_a_query_to_a_frozen_server_is_given_up_and_so_is_its_connection(server: Server) -> None:
    with patient(PATIENCE_S).connect(server.url) as client:
        with frozen(server.pid):
            started = time.monotonic()
            with pytest.raises(psycopg.OperationalError), client.cursor() as cursor:
                cursor.execute("SELECT 1")
            assert PATIENCE_S <= time.monotonic() - started < PATIENCE_S + 1
        assert client.closed


def test_a_pool_lends_no_connection_to_a_frozen_server_and_recovers(server: Server) -> None:
    options = {"timeout": 1, "check": ConnectionPool.check_connection, "kwargs": {"connect_timeout": 2}}
    with ConnectionPool(server.url, connection_class=patient(60), min_size=1, **options) as pool:
        pool.wait()
        with frozen(server.pid):
            started = time.monotonic()
            with pytest.raises(psycopg.OperationalError), pool.connection():
                raise AssertionError("it was lent")
            assert time.monotonic() - started < ALIVE_S + 2
        with pool.connection(timeout=20) as client:
            assert client.cursor().execute("SELECT 1").fetchone() == (1,)


def test_a_server_that_is_only_slow_ends_the_query_and_keeps_the_connection(server: Server) -> None:
    with patient(10).connect(server.url, options="-c statement_timeout=0.1s") as client:
        with pytest.raises(psycopg.errors.QueryCanceled), client.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(5)")
        client.rollback()
        assert client.cursor().execute("SELECT 1").fetchone() == (1,)


@pytest.mark.django_db
def test_requests_queries_locks_and_idle_transactions_end() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, setting || coalesce(unit, '') FROM pg_settings WHERE name IN "
            "('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout')"
        )
        assert dict(cursor.fetchall()) == {
            "statement_timeout": "15000ms",
            "lock_timeout": "10000ms",
            "idle_in_transaction_session_timeout": "60000ms",
        }
    client = connection.connection
    assert isinstance(client, PatientConnection) and client.patience_s == 18
    told = {key: value for key, value in client.info.get_parameters().items() if "keepalives" in key or "tcp" in key}
    assert told == {
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "2",
        "tcp_user_timeout": "10000",
    }


@pytest.mark.django_db
def test_who_waits_for_a_lock_too_long_is_told_that_the_database_does_not_answer() -> None:
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("SELECT pg_advisory_lock(7)")
        with pytest.raises(OperationalError, match="lock timeout"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '0.1s'")
            cursor.execute("SELECT pg_advisory_lock(7)")


@pytest.mark.parametrize(
    ("starts", "seconds"),
    [("import lyo.celery", "300"), ("import lyo.asgi, lyo.celery", "15")],
)
def test_each_kind_of_process_has_limits_of_its_own(starts: str, seconds: str) -> None:
    code = f"{starts}\nfrom django.conf import settings\nprint(settings.QUERY_S)"
    run = [sys.executable, "-c", code]
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "lyo.settings"}
    environment["LYO_ROLE"] = "web"
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == float(seconds)
