"""Runs of the tests that are killed, for real: they leave no server, and nothing that a test has started."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lyo import env
from tests.helpers import until
from tests.undertaker import alive

HANGING = """
import json, os, pathlib, subprocess, time

def test_hangs():
    own = subprocess.Popen(["sleep", "600"], start_new_session=True)
    parent = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True)
    time.sleep(0.2)
    told = {"pytest": os.getpid(), "home": os.environ["LYO_HOME"]}
    file = pathlib.Path(os.environ["TOLD"])
    file.with_suffix(".new").write_text(json.dumps(told))
    file.with_suffix(".new").rename(file)
    time.sleep(600)
"""
RUN = f"{sys.executable} -m pytest -q -p no:cacheprovider -c {env.BASE_DIR}/pyproject.toml --rootdir {env.BASE_DIR}"


@contextlib.contextmanager
def make(tmp_path: Path, before: str) -> Iterator[subprocess.Popen[bytes]]:
    """A make that runs pytest as ours does, in the middle of a test; what is before it makes a shell of its own."""
    (tmp_path / "test_hanging.py").write_text(HANGING)
    (tmp_path / "Makefile").write_text(f"test:\n\t@{before}{RUN} {tmp_path}/test_hanging.py\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LYO_", "PYTEST"))}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            ["make", "-f", str(tmp_path / "Makefile"), "test"],
            cwd=env.BASE_DIR,
            env={**environment, "TOLD": str(tmp_path / "told")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as make,
    ):
        until(lambda: (tmp_path / "told").exists() or make.poll(), 120)
        yield make
        make.kill()


@pytest.mark.parametrize(("before", "victim"), [("", "make"), ("", "pytest"), ("true; ", "shell")])
def test_a_killed_run_leaves_no_server_and_no_process_of_a_test(tmp_path: Path, before: str, victim: str) -> None:
    with make(tmp_path, before) as run:
        told = json.loads((tmp_path / "told").read_text())
        started = psutil.Process(run.pid).children(recursive=True)
        assert {"postgres", "valkey-server", "sleep"} <= {process.name() for process in started}
        tests = psutil.Process(told["pytest"])
        {"make": psutil.Process(run.pid), "pytest": tests, "shell": tests.parent()}[victim].kill()
        until(lambda: not any(alive(process) for process in started), 60)
        with (Path(told["home"]) / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and the next run finds its home free
