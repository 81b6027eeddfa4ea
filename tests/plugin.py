"""Starts the servers that the tests need, under a home of their own, before Django's settings are read.

A second run at the same time gets a second home. No test ever sees the database of `make run`.
"""

import contextlib
import itertools
import os
import subprocess
import sys
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest

from lyo import embedded
from lyo.processes import Console, SetupError, Supervisor
from tests import undertaker

HOMES = Path(__file__).parent.parent / ".lyo"
resources = contextlib.ExitStack()


@pytest.hookimpl(wrapper=True)  # wrappers come before pytest-django, which reads the settings in this hook
def pytest_load_initial_conftests() -> Generator[None]:
    resources.enter_context(_nothing_is_left())
    try:
        home = _free_home()
        (home / "static").mkdir(exist_ok=True)  # else servestatic warns in every test
        log = resources.enter_context((home / "servers.log").open("w"))
        servers = Supervisor(say=Console(log.fileno()))
        resources.callback(servers.stop)
        os.environ |= {"LYO_HOME": str(home), "DJANGO_SETTINGS_MODULE": "lyo.settings"}
        servers.start(*embedded.prepare(home, os.environ))
    except SetupError as error:
        raise pytest.UsageError(str(error)) from error
    return (yield)


def pytest_unconfigure() -> None:
    resources.close()


@contextlib.contextmanager
def _nothing_is_left() -> Generator[None]:
    """Have another process end what this one has started, should it be killed, or leave something."""
    mark, repository = uuid.uuid4().hex, HOMES.parent
    pids = map(str, (*undertaker.over_the_run(), os.getpid()))
    command = [sys.executable, "-m", undertaker.__name__, mark, *pids]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=repository, start_new_session=True)
    os.environ[undertaker.MARK] = mark
    with watch:  # which closes its input, and waits for it
        yield


def _free_home() -> Path:
    for number in itertools.count(1):
        home = HOMES / ("test" if number == 1 else f"test-{number}")
        with contextlib.suppress(SetupError):
            resources.enter_context(embedded.hold(home))
            return home
    raise AssertionError("count() does not end")


# --- what takes long: `make nightly` ---


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the tests that are marked `nightly`, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "nightly: takes minutes; only with --nightly")


@pytest.fixture(scope="session")
def nightly(pytestconfig: pytest.Config) -> bool:
    """Whether there is time for more of the same."""
    return bool(pytestconfig.getoption("nightly"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("nightly"):
        return
    long = [item for item in items if item.get_closest_marker("nightly")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]
