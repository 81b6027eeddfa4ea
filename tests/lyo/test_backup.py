"""Backup and restore as an operator runs them, on stacks with servers of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from apps.users.ledger import account_hash
from lyo import embedded, env
from lyo.processes import Console, Supervisor
from tests.helpers import environment_of_nobody

PEOPLE = """
from apps.content.services import item_create
from apps.users.services import user_register
for name in ("ann", "bob"):
    user, _ = user_register(username=name, email=name + "@example.org", password="correct-horse-9-battery")
    item_create(user=user, title="By " + name, subject="math", body="<p>Text.</p>")
"""
ERASE = """
from apps.users.models import User
from apps.users.services import user_erase
user_erase(user=User.objects.get(username="{}"))
"""


class Home:
    """A stack without web and workers: servers, tables, files and adapters."""

    def __init__(self, name: str) -> None:
        self.path = Path(os.environ["LYO_HOME"]) / name
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        self.log = (self.path / "log").open("w")
        self.supervisor = Supervisor(say=Console(self.log.fileno()))
        self.supervisor.start(*embedded.prepare(self.path, {}))
        self.url = embedded.read_local(self.path)["database_url"]
        self.files, self.adapters = self.path / "files", self.path / "adapters"

    def manage(self, *command: str) -> subprocess.CompletedProcess[str]:
        theirs = {"LYO_HOME": str(self.path), "LYO_ADAPTERS_DIR": str(self.adapters)}
        run = [sys.executable, "manage.py", *command]
        environment = {**environment_of_nobody(), **theirs}
        return subprocess.run(run, cwd=env.BASE_DIR, env=environment, capture_output=True, text=True)

    def code(self, code: str) -> None:
        done = self.manage("shell", "-v", "0", "-c", code)
        assert done.returncode == 0, done.stderr

    def rows(self) -> dict[str, list[str]]:
        """Of all tables."""
        with psycopg.connect(self.url) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            select = SQL("SELECT t::text FROM {} AS t ORDER BY 1")
            return {name: [row for (row,) in connection.execute(select.format(Identifier(name)))] for (name,) in tables}

    def users(self) -> set[str]:
        with psycopg.connect(self.url) as connection:
            return {name for (name,) in connection.execute("SELECT username FROM users_user")}

    def databases(self) -> set[str]:
        with psycopg.connect(self.url) as connection:
            return {name for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datallowconn")}

    def stop(self) -> None:
        self.supervisor.stop()
        self.log.close()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source() -> Iterator[Home]:
    """Two learners, an uploaded file and an adapter."""
    home = Home("backup-source")
    assert home.manage("migrate", "-v", "0").returncode == 0
    home.code(PEOPLE)
    for path, text in (
        (home.files / "training" / "1.jsonl", "{}"),
        (home.adapters / "abc" / "adapter_config.json", "[]"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (home.adapters / "incoming" / "half").mkdir(parents=True)
    (home.adapters / "incoming" / "half" / "x.zip").write_text("half an upload")
    yield home
    home.stop()


@pytest.fixture(scope="module")
def target() -> Iterator[Home]:
    home = Home("backup-target")
    yield home
    home.stop()


@pytest.fixture(scope="module")
def saved(source: Home) -> Path:
    folder = source.path / "saved"
    done = source.manage("backup", "--to", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_what_is_backed_up_is_listed_with_digests_and_for_the_owner_alone(source: Home, saved: Path) -> None:
    assert set(tree(saved)) == {
        *("SHA256SUMS", "database.dump", "erasures"),
        *("files/training/1.jsonl", "adapters/abc/adapter_config.json"),
    }
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=saved, capture_output=True, text=True
    )
    assert (check.returncode, check.stdout.count(": OK\n")) == (0, 4)
    assert saved.stat().st_mode & 0o077 == 0


def test_a_backup_never_replaces_another_and_half_a_backup_has_no_name(source: Home, saved: Path) -> None:
    before = tree(saved)
    again = source.manage("backup", "--to", str(saved))
    assert again.returncode == 1 and "is there already" in again.stderr and "Traceback" not in again.stderr
    assert tree(saved) == before
    (source.files / "unreadable").mkdir()
    (source.files / "unreadable" / "loop").symlink_to("loop")
    broken = source.manage("backup", "--to", str(source.path / "broken"))
    shutil.rmtree(source.files / "unreadable")
    assert broken.returncode == 1
    assert [path.name for path in source.path.iterdir() if "broken" in path.name] == []


def test_a_backup_that_has_changed_is_refused_and_changes_nothing(saved: Path, target: Home) -> None:
    for harm, complaint in (
        (lambda copy: (copy / "files/training/1.jsonl").write_text("[]"), "1.jsonl has changed"),
        (lambda copy: (copy / "adapters/abc/adapter_config.json").unlink(), "adapter_config.json is missing"),
        (lambda copy: (copy / "files/more").write_text("more"), "files/more is not in its list"),
        (lambda copy: (copy / "SHA256SUMS").unlink(), "is no backup"),
    ):
        copy = target.path / "harmed"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(saved, copy)
        harm(copy)
        done = target.manage("restore", "--from", str(copy))
        assert done.returncode == 1 and complaint in done.stderr, done.stderr
    assert target.rows() == {} and not target.files.exists()


def test_an_empty_stack_gets_every_row_and_file_back(source: Home, saved: Path, target: Home) -> None:
    done = target.manage("restore", "--from", str(saved))
    assert done.returncode == 0, done.stderr
    assert target.rows() == source.rows()
    assert target.users() == {"ann", "bob"}
    assert tree(target.files) == tree(source.files)
    assert tree(target.adapters) == {"abc/adapter_config.json": b"[]"}
    assert target.databases() == {"lyo", "postgres", "template1"}


def test_a_stack_with_people_is_restored_only_by_force_and_whoever_left_since_stays_away(
    source: Home, saved: Path, target: Home
) -> None:
    assert target.users() == {"ann", "bob"}
    with psycopg.connect(target.url) as connection:
        ((bob,),) = connection.execute("SELECT id FROM users_user WHERE username = 'bob'")
    target.code(ERASE.format("bob"))
    assert (target.files / "erasures").read_text().split() == [account_hash(bob)]
    (target.files / "training" / "newer.jsonl").write_text("of a row that the backup does not have")
    before = target.rows()

    refused = target.manage("restore", "--from", str(saved))
    assert refused.returncode == 1 and "FORCE=1" in refused.stderr
    assert target.rows() == before

    forced = target.manage("restore", "--from", str(saved), "--force")
    assert forced.returncode == 0, forced.stderr
    assert target.users() == {"ann"}
    assert not [row for row in target.rows()["content_item"] if str(bob) in row]
    assert tree(target.files).keys() == {"training/1.jsonl", "erasures"}
    assert [row.split(",")[0].strip("(") for row in target.rows()["users_erasure"]] == [account_hash(bob)]


def test_later_backups_know_earlier_erasures_and_bring_them_to_other_machines(target: Home, source: Home) -> None:
    later = target.path / "later"
    assert target.manage("backup", "--to", str(later)).returncode == 0
    (known,) = (later / "erasures").read_text().split()
    assert source.users() == {"ann", "bob"}
    assert source.manage("restore", "--from", str(later), "--force").returncode == 0
    assert (source.files / "erasures").read_text().split() == [known]
    assert source.users() == {"ann"}


def test_without_a_database_one_line_says_so(target: Home) -> None:
    target.supervisor.stop()
    done = target.manage("backup", "--to", str(target.path / "never"))
    assert done.returncode == 1
    assert "The database does not answer: have `make run` running" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", [("backup", "--to"), ("restore", "--from")])
def test_where_no_servers_are_known_one_line_says_so(tmp_path: Path, command: tuple[str, str]) -> None:
    run = [sys.executable, "manage.py", *command, str(tmp_path / "saved")]
    environment = {**environment_of_nobody(), "LYO_HOME": str(tmp_path)}
    done = subprocess.run(run, cwd=env.BASE_DIR, env=environment, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.partition(". ")[0]) == (1, "No servers are known")
