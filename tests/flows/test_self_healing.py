"""What stands still ends itself and is started again, though its process would have lived on."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from lyo import env
from lyo.stack import Stack
from tests.flows.conftest import STALL_S
from tests.flows.learner import Learner
from tests.helpers import until

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

PATIENCE_S = 2 * STALL_S + 30


def replaced(stack: Stack, name: str, pid: int) -> bool:
    return stack.supervisor.pids().get(name) not in (None, pid)


def ready(stack: Stack) -> bool:
    return httpx.get(f"{stack.web}/readyz", timeout=30).status_code == 200


def test_a_worker_that_stopped_consuming_is_replaced(stack: Stack, learner: Learner) -> None:
    pid = stack.supervisor.pids()["default"]
    control = ["celery", "-A", "lyo", "control", "-d", f"default@{socket.gethostname()}", "cancel_consumer", "default"]
    subprocess.run([sys.executable, "-m", *control], env=stack.environment, cwd=env.BASE_DIR, check=True, timeout=60)
    until(lambda: replaced(stack, "default", pid), PATIENCE_S)
    until(lambda: ready(stack), 60)


@pytest.mark.parametrize("name", ["beat", "generate"])
def test_a_frozen_process_is_replaced(stack: Stack, learner: Learner, name: str) -> None:
    pid = stack.supervisor.pids()[name]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: replaced(stack, name, pid), PATIENCE_S)
    job = learner.ask("Is anybody there?", max_tokens=4)
    until(lambda: learner.job(job)["state"] == "succeeded", 120)
    assert learner.job(job)["attempt"] == 1
