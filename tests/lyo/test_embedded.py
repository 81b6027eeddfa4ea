"""Embedded Postgres and Redis, with real servers in a home of their own."""

import contextlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import redis

from lyo import embedded
from lyo.processes import Console, SetupError, Supervisor
from tests.helpers import until

SERVERS = ["postgres", "redis-broker", "redis-cache"]


class Home:
    """A home with its running servers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = (path / "log").open("w")
        self.supervisor = Supervisor(say=Console(self.log.fileno()))
        self.supervisor.start(*embedded.prepare(path, {}))
        self.local = embedded.read_local(path)
        self.broker = redis.Redis.from_url(self.local["broker_url"])

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.local["database_url"]) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def stop(self) -> None:
        self.supervisor.stop()
        self.log.close()

    def kill(self, name: str) -> None:
        """SIGKILL a server and wait for its successor."""
        old = self.supervisor.pid(name)
        self.supervisor.kill(name)
        until(lambda: self.supervisor.pid(name) not in (None, old))
        self.supervisor.wait_ready(name)


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    # Not under pytest's temporary folder, which lets nobody else pass: Postgres may have to run as another user.
    path = Path(os.environ["LYO_HOME"]) / "embedded"
    path.mkdir(exist_ok=True)
    home = Home(path)
    yield home
    home.stop()


def test_postgres_keeps_its_data_through_kill_9(home: Home) -> None:
    home.sql("DROP TABLE IF EXISTS kept; CREATE TABLE kept (id int); INSERT INTO kept SELECT generate_series(1, 1000)")
    home.kill("postgres")
    assert home.sql("SELECT count(*) FROM kept") == [(1000,)]


def test_postgres_comes_back_while_its_dead_predecessor_still_works_on_a_query(home: Home) -> None:
    with contextlib.closing(psycopg.connect(home.local["database_url"])) as connection:
        connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 3000000) a WHERE sqrt(a) > 0")
        home.kill("postgres")
    assert home.sql("SELECT 1") == [(1,)]


def test_vectors_can_be_stored_and_searched(home: Home) -> None:
    home.sql("CREATE EXTENSION IF NOT EXISTS vector")
    assert home.sql("SELECT '[1,2,3]'::vector <-> '[1,2,4]'::vector") == [(1.0,)]


def test_text_is_unicode_whatever_the_machine_speaks(home: Home) -> None:
    assert home.sql("SELECT lower('ÄΩ'), current_setting('server_encoding')") == [("äω", "UTF8")]


def test_the_broker_keeps_what_it_acknowledged_through_kill_9(home: Home) -> None:
    home.broker.delete("kept")
    for number in range(1000):
        home.broker.xadd("kept", {"number": number})
    home.kill("redis-broker")
    assert home.broker.xlen("kept") == 1000


def test_the_servers_are_valkey_9_and_know_what_redis_6_did_not(home: Home) -> None:
    assert int(home.broker.info("server")["valkey_version"].split(".")[0]) >= 9
    home.broker.set("expires", "1")
    assert [home.broker.expire("expires", 100, nx=True), home.broker.expire("expires", 100, nx=True)] == [True, False]


def test_a_broker_of_redis_6_goes_on_with_what_it_had(home: Home) -> None:
    """Which was one append-only file, of the commands as they had come."""
    old = home.path / "upgraded"
    shutil.rmtree(old, ignore_errors=True)
    (old / "redis-broker").mkdir(parents=True)
    commands = [("SELECT", "0"), ("XADD", "jobs", "1-1", "id", "7"), ("LPUSH", "default", "message")]
    words = [f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words) for words in commands]
    (old / "redis-broker" / "appendonly.aof").write_text("".join(words))
    urls = {"LYO_DATABASE_URL": "postgres://db", "LYO_CACHE_URL": "redis://cache"}
    supervisor = Supervisor(say=Console(home.log.fileno()))
    try:
        supervisor.start(*embedded.prepare(old, urls))
        broker = redis.Redis.from_url(embedded.read_local(old)["broker_url"])
        assert broker.xrange("jobs") == [(b"1-1", {b"id": b"7"})]
        assert broker.lrange("default", 0, -1) == [b"message"]
    finally:
        supervisor.stop()


def test_the_broker_never_evicts_and_the_cache_may(home: Home) -> None:
    cache = redis.Redis.from_url(home.local["cache_url"])
    assert home.broker.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    assert cache.config_get("maxmemory-policy")["maxmemory-policy"] == "allkeys-lru"


@pytest.mark.parametrize("name", SERVERS)
def test_servers_listen_on_loopback_alone(home: Home, name: str) -> None:
    process = psutil.Process(home.supervisor.pid(name))
    addresses = {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}


@pytest.mark.parametrize("name", SERVERS)
def test_passwords_are_not_in_the_process_list(home: Home, name: str) -> None:
    passwords = [str(urlsplit(url).password) for key, url in home.local.items() if key.endswith("_url")]
    command = " ".join(psutil.Process(home.supervisor.pid(name)).cmdline())
    assert command
    assert not any(password in command for password in passwords)


def test_nobody_gets_in_without_the_password(home: Home) -> None:
    address = urlsplit(home.local["broker_url"])
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=address.port or 0).ping()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(home.local["database_url"], password="wrong")


def test_secrets_are_for_the_owner_alone(home: Home) -> None:
    for file in ("local.json", "redis-broker/redis.conf", "redis-cache/redis.conf"):
        assert stat.S_IMODE((home.path / file).stat().st_mode) == 0o600
    assert not (home.path / "postgres" / "password").exists()


def test_postgres_does_not_run_as_root(home: Home) -> None:
    assert psutil.Process(home.supervisor.pid("postgres")).uids().real != 0


def test_only_servers_without_a_url_are_started(tmp_path: Path) -> None:
    given = {"LYO_DATABASE_URL": "postgres://db/lyo", "LYO_CACHE_URL": "redis://cache"}
    assert [server.name for server in embedded.prepare(tmp_path, given)] == ["redis-broker"]
    assert {"secret_key", "admin_username", "admin_password", "broker_url"} == set(embedded.read_local(tmp_path))


def test_addresses_and_secrets_stay_unless_a_foreign_process_took_the_port(tmp_path: Path) -> None:
    given = {"LYO_DATABASE_URL": "postgres://db/lyo"}
    embedded.prepare(tmp_path, given)
    first = embedded.read_local(tmp_path)
    embedded.prepare(tmp_path, given)
    assert embedded.read_local(tmp_path) == first
    port = urlsplit(first["cache_url"]).port
    with socket.create_server(("127.0.0.1", port or 0)):
        embedded.prepare(tmp_path, given)
    second = embedded.read_local(tmp_path)
    assert urlsplit(second["cache_url"]).port != port
    assert urlsplit(second["cache_url"]).password == urlsplit(first["cache_url"]).password
    assert second | {"cache_url": ""} == first | {"cache_url": ""}
    assert f"port {urlsplit(second['cache_url']).port}\n" in (tmp_path / "redis-cache" / "redis.conf").read_text()


def test_an_interrupted_initdb_is_done_again(home: Home) -> None:
    data = home.path / "interrupted" / "postgres" / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.with_name("data.new").mkdir(parents=True)
    (data.with_name("data.new") / "PG_VERSION").write_text("half")
    embedded.prepare(home.path / "interrupted", {"LYO_BROKER_URL": "redis://broker", "LYO_CACHE_URL": "redis://cache"})
    assert (data / "PG_VERSION").read_text() == "18\n"
    assert [path.name for path in data.parent.iterdir()] == ["data"]


def test_a_folder_that_postgres_cannot_enter_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(SetupError, match=r"^.* cannot enter /.*: run `chmod o\+x /.*$"):
        embedded.require_reachable(embedded.NOBODY, tmp_path / "closed")


def test_a_home_has_one_owner(tmp_path: Path) -> None:
    with embedded.hold(tmp_path), pytest.raises(SetupError, match=r"already running in .* LYO_HOME"):
        embedded.hold(tmp_path)
    embedded.hold(tmp_path).close()


def test_a_private_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    embedded.write_private(tmp_path / "run.json", json.dumps({"processes": []}))
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
