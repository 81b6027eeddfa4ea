"""Starts the servers that the tests need, under a home of their own, before Django's settings are read.

A second run at the same time gets a second home. No test ever sees the database of `make run`.
"""

import contextlib
import itertools
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from lyo import embedded
from lyo.processes import Console, SetupError, Supervisor

HOMES = Path(__file__).parent.parent / ".lyo"
resources = contextlib.ExitStack()


@pytest.hookimpl(wrapper=True)  # wrappers come before pytest-django, which reads the settings in this hook
def pytest_load_initial_conftests() -> Generator[None]:
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


def _free_home() -> Path:
    for number in itertools.count(1):
        home = HOMES / ("test" if number == 1 else f"test-{number}")
        with contextlib.suppress(SetupError):
            resources.enter_context(embedded.hold(home))
            return home
    raise AssertionError("count() does not end")
