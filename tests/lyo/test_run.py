"""What `make run` says when it cannot go on: one line on stderr, exit code 1, and nothing left running."""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lyo import embedded, run, stack
from lyo.processes import SetupError
from tests.undertaker import alive


def lyo(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make run` without make."""
    return subprocess.run(
        [sys.executable, "-m", "lyo.run"],
        env={**os.environ, "LYO_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("setting", ["LYO_PORT", "LYO_FLOWER_PORT"])
def test_a_port_in_use_is_one_clear_line(tmp_path: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"LYO_PORT": str(embedded.free_port()), "LYO_FLOWER_PORT": str(embedded.free_port())}
        port = str(taken.getsockname()[1])
        run = lyo(tmp_path, **{**ports, setting: port})
    line = f"lyo: Cannot listen on 127.0.0.1 port {port} (Address already in use): free it, or set {setting}.\n"
    assert (run.returncode, run.stderr) == (1, line)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"LYO_ENGINE": "remote"}, "LYO_ENGINE=remote needs LYO_REMOTE_URL, such as http://vllm:8000/v1"),
        ({"LYO_HEARTBEAT_S": "9"}, "LYO_HEARTBEAT_S must be at most half of LYO_LEASE_S"),
        ({"LYO_MAX_BATCH": "0"}, 'Environment variable "LYO_MAX_BATCH" invalid'),
    ],
)
def test_settings_that_cannot_work_are_one_clear_line(tmp_path: Path, settings: dict[str, str], line: str) -> None:
    run = lyo(tmp_path, **settings)
    assert (run.returncode, run.stderr.count("\n"), line in run.stderr) == (1, 1, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stack_that_a_script_started_in_the_background_stops_on_either_signal(number: signal.Signals) -> None:
    """A shell without job control has SIGINT ignored in what it starts with `&`."""
    home = Path(os.environ["LYO_HOME"]) / "background"
    home.mkdir(exist_ok=True)
    ports = {"LYO_PORT": str(embedded.free_port()), "LYO_FLOWER_PORT": str(embedded.free_port())}
    process = subprocess.Popen(
        ["sh", "-c", f"trap '' INT; exec {sys.executable} -m lyo.run"],
        env={**os.environ, "LYO_HOME": str(home), **ports},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        lines = iter(process.stdout or ())
        assert next(line for line in lines if "manage.py migrate" in line)
        started = psutil.Process(process.pid).children(recursive=True)
        assert {"postgres", "valkey-server"} <= {child.name() for child in started}
        process.send_signal(number)
        assert (process.wait(60), "".join(lines).count("Traceback")) == (0, 0)
    assert not any(alive(child) for child in started)
    assert not (home / "run.json").exists()


def test_the_greeting_asks_the_tutor_for_the_base_model_answers_noise() -> None:
    admin = {"username": "admin", "password": "p"}
    greeting = run.READY.format(web="http://127.0.0.1:8000", flower="http://127.0.0.1:5555", **admin)
    (body,) = re.findall(r"-d '(.*stream.*)'", greeting)
    assert json.loads(body)["model"] == "tutor"


def test_a_second_lyo_in_the_same_home_is_one_clear_line(tmp_path: Path) -> None:
    with embedded.hold(tmp_path):
        run = lyo(tmp_path)
    line = f"lyo: Lyo is already running in {tmp_path}: stop it, or set LYO_HOME to another folder.\n"
    assert (run.returncode, run.stderr) == (1, line)


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "MODEL_SPACE", shutil.disk_usage(tmp_path).total * 2)
    with pytest.raises(SetupError, match=r"^[\d.]+ GiB are free .*: make room, or set LYO_MODELS_DIR .*$"):
        stack.require_space(tmp_path)
    (tmp_path / "model.safetensors").touch()
    stack.require_space(tmp_path)  # nothing is to be converted


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name in ("redis", "torch"):
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert run.main() == 1
    assert capsys.readouterr().err == "lyo: Missing packages: redis, torch. Run `make install`.\n"


def test_run_json_tells_where_things_are_to_the_owner_alone(tmp_path: Path) -> None:
    embedded.prepare(tmp_path, {"LYO_DATABASE_URL": "postgres://db/lyo"})
    lyo = stack.Stack(tmp_path, port=8001, flower_port=8002)
    lyo.supervisor.on_change({"web": 1, "generate": 2})
    file = tmp_path / "run.json"
    assert json.loads(file.read_text()) == {
        "web": "http://127.0.0.1:8001",
        "flower": "http://127.0.0.1:8002",
        "admin": {"username": "admin", "password": embedded.read_local(tmp_path)["admin_password"]},
        "processes": [{"name": "web", "pid": 1}, {"name": "generate", "pid": 2}],
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
