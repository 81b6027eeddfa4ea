"""Whom Lyo's engine is measured against. Each runs in a process of its own, with the environment that its users have.

All are given questions at their times, and tell when each token of the answers came. Every answer is greedy and exactly
as long as it was asked to be: none may end early.
"""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol
from urllib.parse import urlsplit


class Ask(NamedTuple):
    """A request that comes `at` seconds after the first one."""

    prompt: tuple[int, ...]
    max_tokens: int
    at: float = 0.0


class Server(Protocol):
    name: str

    def serve(self, asks: Sequence[Ask]) -> list[list[float]]:
        """Answer `asks`, in order of time; of each the times of its tokens, in seconds after the first one came."""


def wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


class Pipes(NamedTuple):
    """To and from a process: lines of JSON."""

    given: IO[str]
    told: IO[str]

    def call(self, *arguments: Any) -> Any:
        self.given.write(json.dumps(arguments) + "\n")
        self.given.flush()
        return self.receive()

    def receive(self) -> Any:
        line = self.told.readline()
        if not line:
            raise RuntimeError("a peer's process has ended: see its lines above")
        return json.loads(line)


@contextmanager
def process(module: str, *arguments: object) -> Iterator[Pipes]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin and child.stdout
    with child:
        try:
            yield Pipes(child.stdin, child.stdout)
        finally:
            child.terminate()


# --- transformers ---


class Transformers:
    """A way in which transformers serves: see `tests.bench.transformers_server`."""

    def __init__(self, name: str, pipes: Pipes) -> None:
        self.name = name
        self._pipes = pipes

    def serve(self, asks: Sequence[Ask]) -> list[list[float]]:
        return self._pipes.call(asks)

    def score(self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        return self._pipes.call(prefix, continuations)


@contextmanager
def transformers(name: str, way: str, folder: Path, threads: int, at_once: int) -> Iterator[Transformers]:
    with process("tests.bench.transformers_server", way, folder, threads, at_once) as pipes:
        yield Transformers(name, pipes)


# --- servers over HTTP ---


class CompletionsServer:
    """An OpenAI-compatible server at a plain http address, asked by token ids; vLLM's, SGLang's, llama.cpp's."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        address = urlsplit(url)
        self._host, self._path = address.netloc, address.path.rstrip("/").removesuffix("/v1")
        connection = http.client.HTTPConnection(self._host)
        connection.request("GET", f"{self._path}/v1/models")
        self._model = json.load(connection.getresponse())["data"][0]["id"]

    def serve(self, asks: Sequence[Ask]) -> list[list[float]]:
        started = time.perf_counter()
        with ThreadPoolExecutor(len(asks)) as pool:
            return list(pool.map(partial(self._answer, started), asks))

    def _answer(self, started: float, ask: Ask) -> list[float]:
        body = {
            "model": self._model,
            "prompt": ask.prompt,
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        wait_until(started + ask.at)
        connection = http.client.HTTPConnection(self._host)
        connection.request(
            "POST", f"{self._path}/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{self.name} answers {response.status} {response.read(500)!r}")
        times, tokens = [], 0
        while line := response.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line.removeprefix(b"data: "))
                if any(choice["text"] for choice in event["choices"]):
                    times.append(time.perf_counter() - started)
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        connection.close()
        if tokens != ask.max_tokens:
            raise RuntimeError(f"{self.name} ended an answer after {tokens} of {ask.max_tokens} tokens")
        return times + times[-1:] * (tokens - len(times))  # those that came together with others


@contextmanager
def llama_cpp(gguf: Path, threads: int, slots: int) -> Iterator[CompletionsServer]:
    with process("tests.bench.llama_server", gguf, threads, slots) as pipes:
        yield CompletionsServer("llama.cpp Q4_K_M", pipes.receive())
