"""One whole Lyo under one home: servers, one-shot steps, then web, workers, beat and Flower.

`make run`, tests and benchmarks start the same table.
"""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.multiprocess import mark_process_dead

from lyo import embedded, env
from lyo.processes import TIED, Console, Process, SetupError, Supervisor

GIB = 2**30
MODEL_SPACE = 2 * GIB  # what the packaged model takes while it is assembled and converted
PYTHON = (sys.executable, "-m")
CELERY = (*PYTHON, "celery", "-A", "lyo")
# What the libraries of a process with an engine read as they are loaded; docker/worker.Dockerfile says the same.
FOR_ENGINE = {
    "GOMP_SPINCOUNT": "5000",  # torch's threads share the cores: they may wait awake for µs only
    "MALLOC_ARENA_MAX": "1",  # else each of sixty threads keeps what it freed for itself
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",  # not 1,024, for each number of rows in a product, of up to 2 MB
    "LRU_CACHE_CAPACITY": "32",  # the same of PyTorch's cache of them
}
WORKER = (*CELERY, "worker", "--pool=threads", "--loglevel=INFO", "--without-mingle", "--without-gossip")
MANAGE = (sys.executable, "manage.py")
TUTOR = env.BASE_DIR / "workers" / "models" / "adapters" / "tutor"  # what answers in the demo
TOKENIZER_ONLY = ("--tokenizer-only",) if env.ENGINE == "remote" else ()
# What is done once before web and workers start; each may be repeated, and is quick when there is nothing to do.
STEPS: tuple[tuple[str, ...], ...] = (
    (*MANAGE, "migrate"),
    (*MANAGE, "collectstatic", "--noinput", "--verbosity=0"),
    (*PYTHON, "workers.models.prepare", "--model", env.MODEL, "--dir", str(env.MODELS_DIR), *TOKENIZER_ONLY),
    (*MANAGE, "seed_demo"),
    *([(*MANAGE, "import_adapter", str(TUTOR), "--task=tutoring", "--live")] if TUTOR.is_dir() else []),
    (*MANAGE, "register_evaluation_sets"),
    (*MANAGE, "import_content"),
)


class Stack:
    """A Lyo of its own under `home`, from `start` to `stop`; also a context manager.

    `only` names the processes wanted beside the servers (all by default; without all of them `/readyz` cannot pass, so
    ready means alive). `extra` is added to every process's environment. Ports that are not given are chosen.
    """

    def __init__(
        self,
        home: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        flower_port: int | None = None,
        only: Collection[str] | None = None,
        extra: Mapping[str, str] | None = None,
        say: Callable[[str, str], None] | None = None,
    ) -> None:
        self.home = home.resolve()
        self.host, self.port = host, port or embedded.free_port()
        self.flower_port = flower_port or embedded.free_port()
        self.only = only
        self.metrics = self.home / "metrics"
        self.environment = {
            "LYO_LOG_FORMAT": "console",
            **os.environ,
            "LYO_ROLE": "web",  # workers and commands say that they are none, whatever this process is
            "LYO_HOME": str(self.home),
            "PROMETHEUS_MULTIPROC_DIR": str(self.metrics),
            "PYTHONUNBUFFERED": "1",
            **(extra or {}),
        }
        self.say = say or Console()
        self.supervisor = Supervisor(self.say, self._write_run_file)
        self._pids: dict[str, int] = {}

    @property
    def web(self) -> str:
        """The web's address as a browser on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def flower(self) -> str:
        return f"http://127.0.0.1:{self.flower_port}"

    @property
    def admin(self) -> dict[str, str]:
        """Username and password of the demo staff account."""
        local = embedded.read_local(self.home)
        return {"username": local["admin_username"], "password": local["admin_password"]}

    def start(self) -> None:
        """Start everything and return when it is ready; raises `SetupError` with nothing left running."""
        with contextlib.ExitStack() as undo:
            undo.enter_context(embedded.hold(self.home))
            undo.callback(self._stop)
            require_port(self.host, self.port, "LYO_PORT")
            require_port("127.0.0.1", self.flower_port, "LYO_FLOWER_PORT")
            require_space(env.MODELS_DIR)
            shutil.rmtree(self.metrics, ignore_errors=True)
            self.metrics.mkdir()
            self.say("lyo", "starting servers")
            self.supervisor.start(*embedded.prepare(self.home, self.environment))
            for step in STEPS:
                self._run(*step)
            self.say("lyo", "starting web and workers; loading the model takes a moment")
            self.supervisor.start(*(p for p in self._processes() if self.only is None or p.name in self.only))
            self._undo = undo.pop_all()

    def join(self) -> None:
        """Wait as long as the stack is supervised."""
        self.supervisor.join()

    def stop(self) -> None:
        """Stop everything; nothing of it is left."""
        self._undo.close()

    def __enter__(self) -> "Stack":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _stop(self) -> None:
        try:
            self.supervisor.stop()
        except KeyboardInterrupt:  # asked a second time
            self.supervisor.stop(grace_s=0)
        finally:
            (self.home / "run.json").unlink(missing_ok=True)

    def _run(self, python: str, *argv: str) -> None:
        """Run a command to its end; its lines are shown as they come."""
        self.say("lyo", f"python {' '.join(argv)}")
        command = subprocess.Popen(  # noqa: S603
            [*TIED, python, *argv],
            cwd=env.BASE_DIR,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            for line in command.stdout or ():
                self.say(argv[1].rpartition(".")[2], line.rstrip())
            if code := command.wait():
                raise SetupError(f"`python {' '.join(argv)}` failed with exit code {code}: see its lines above.")
        finally:
            command.kill()
            command.wait()

    def _processes(self) -> list[Process]:
        """The table. Names are those of run.json."""
        uvicorn = (
            *PYTHON,
            "uvicorn",
            "lyo.asgi:application",
            "--loop=uvloop",
            "--http=lyo.http:Protocol",  # bounds what a stranger can make it hold
            "--ws=none",
            "--no-proxy-headers",  # LYO_TRUSTED_PROXIES decides whom to believe
            "--no-access-log",
        )

        def process(name: str, *argv: str, extra: Mapping[str, str] | None = None, **rest: Any) -> Process:
            return Process(name=name, argv=argv, env={**self.environment, **(extra or {})}, cwd=env.BASE_DIR, **rest)

        return [
            process(
                "web",
                *(
                    *uvicorn,
                    f"--host={self.host}",
                    f"--port={self.port}",
                    "--timeout-graceful-shutdown=2",
                    "--timeout-keep-alive=15",
                ),
                ready=self._require_ready,
                ready_s=900.0,  # the worker may have a large model to load
            ),
            process(
                "generate",
                *(*WORKER, "--hostname=generate@%h", "--queues=generate,embed,evaluate,score,understand"),
                "--include=workers.tasks.generate,workers.tasks.embed,workers.tasks.evaluate,workers.tasks.compare,"
                "workers.tasks.enrich,workers.tasks.feed,workers.tasks.foresee,workers.tasks.imports,workers.tasks.understand",
                extra=FOR_ENGINE,
            ),
            process(
                "train",  # behind the tutor where they share cores
                *("nice", "-n", "10", *WORKER, "--hostname=train@%h", "--queues=train", "--concurrency=1"),
                "--include=workers.tasks.train,workers.tasks.feed",
            ),
            process("default", *WORKER, "--hostname=default@%h", "--queues=default,sweep", "--concurrency=6"),
            process("beat", *CELERY, "beat", "--loglevel=INFO"),
            process(
                "flower",
                *(*CELERY, "flower", "--address=127.0.0.1", f"--port={self.flower_port}", "--read_only=True"),
                extra={"FLOWER_BASIC_AUTH": "{username}:{password}".format(**self.admin)},
            ),
        ]

    def _require_ready(self) -> None:
        address = urlsplit(self.web)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=5)
        with contextlib.closing(connection):
            path = "/readyz" if self.only is None else "/livez"
            connection.request("GET", path, headers={"Host": env.ALLOWED_HOSTS[0].lstrip(".*") or "localhost"})
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise ConnectionError(f"{path} answers {response.status} {response.read(500).decode(errors='replace')}")

    def _write_run_file(self, pids: dict[str, int]) -> None:
        for pid in set(self._pids.values()) - set(pids.values()):
            mark_process_dead(pid, str(self.metrics))  # else its gauges would be counted for ever
        self._pids = pids
        run = {
            "web": self.web,
            "flower": self.flower,
            "admin": self.admin,
            "processes": [{"name": name, "pid": pid} for name, pid in pids.items()],
        }
        embedded.write_private(self.home / "run.json", json.dumps(run, indent=2))


def require_port(host: str, port: int, setting: str) -> None:
    """Raise `SetupError` where nothing can listen."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise SetupError(f"Cannot listen on {host} port {port} ({why}): free it, or set {setting}.") from None


def require_space(models: Path) -> None:
    """Raise `SetupError` where models are still to be converted and the disk cannot take them."""
    if any(models.rglob("*.safetensors")):
        return
    models.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(models).free
    if free < MODEL_SPACE:
        raise SetupError(
            f"{free / GIB:.1f} GiB are free where the model is converted ({models}), {MODEL_SPACE / GIB:.0f} GiB are "
            "needed: make room, or set LYO_MODELS_DIR to a folder on another disk."
        )
