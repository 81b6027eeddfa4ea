"""What Lyo costs over what it is built on: `make bench`.

REST with server-sent events against the engine called directly, and the job layer against bare Celery tasks, each pair
in the same run on the same machine, round by round in turns.
"""

import argparse
import http.client
import json
import os
import statistics
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from lyo import embedded
from lyo.processes import Process

if TYPE_CHECKING:
    from lyo.stack import Stack

HOME = Path(__file__).resolve().parents[2] / ".lyo" / "bench"
MESSAGES = [{"role": "user", "content": "Explain step by step why the sum of two even numbers is even. " * 4}]


class Sizes(NamedTuple):
    concurrent: int = 16
    tokens: int = 64
    rounds: int = 5
    warm_up: int = 1
    first_tokens: int = 20
    jobs: int = 1000


SMOKE = Sizes(concurrent=2, tokens=4, rounds=1, warm_up=0, first_tokens=1, jobs=20)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.foundation", description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    sizes = SMOKE if parser.parse_args().smoke else Sizes()
    os.environ |= {"LYO_HOME": str(HOME), "DJANGO_SETTINGS_MODULE": "lyo.settings", "LYO_LOG_LEVEL": "WARNING"}
    HOME.mkdir(parents=True, exist_ok=True)
    embedded.prepare(HOME, os.environ)  # addresses, before anything reads the settings
    import django

    from lyo.stack import FOR_ENGINE, Stack

    os.environ |= FOR_ENGINE  # as its worker has it, but for the arenas, which glibc has made by now
    django.setup()
    limits = ("GENERATIONS_PER_MINUTE", "GENERATIONS_AT_ONCE", "REQUESTS_PER_MINUTE")
    stack = Stack(HOME, say=lambda name, line: None, extra={f"LYO_{name}": "1000000" for name in limits})
    print("starting a stack and an engine …", flush=True)
    with stack:
        generation(stack, sizes)
        jobs(stack, sizes)


# --- generation ---


def generation(stack: "Stack", sizes: Sizes) -> None:
    direct, served = DirectEngine(), RestClient(stack.web)
    print(f"\ndecode tokens/s, {sizes.concurrent} concurrent, {sizes.tokens} out, median of {sizes.rounds} [min, max]")
    ways = [partial(way.tokens_per_second, sizes.concurrent, sizes.tokens) for way in (direct, served)]
    report("engine, called directly", ways[0], "Lyo, REST and SSE", ways[1], sizes)
    print(f"\ntime to first token at 1 concurrent, ms, median of {sizes.first_tokens} [min, max]")
    pairs = [(direct.first_token(), served.first_token()) for _ in range(sizes.first_tokens + 3)][3:]
    own, rest = ([seconds * 1000 for seconds in column] for column in zip(*pairs, strict=True))
    show("engine, called directly", own)
    show("Lyo, REST and SSE", rest, f"added {statistics.median(rest) - statistics.median(own):.1f} ms")
    direct.stop()


class DirectEngine:
    """The engine of the worker, with its settings, in this process."""

    def __init__(self) -> None:
        from workers.models.template import render
        from workers.tasks.runtime import runtime

        self.model, self.engine = runtime()[:2]
        self.prompt = tuple(render(self.model.tokenizer, MESSAGES))

    def submit(self, max_tokens: int, on_delta: Callable[[Any], None] = lambda delta: None) -> Any:
        from workers.protocols import GenerateRequest, Sampling

        sampling = Sampling(max_tokens=max_tokens, temperature=0)
        return self.engine.submit(GenerateRequest(str(uuid.uuid4()), self.prompt, sampling), on_delta)

    def tokens_per_second(self, concurrent: int, tokens_out: int) -> float:
        started = time.perf_counter()
        handles = [self.submit(tokens_out) for _ in range(concurrent)]
        tokens = sum(handle.wait().completion_tokens for handle in handles)
        return tokens / (time.perf_counter() - started)

    def first_token(self) -> float:
        came = threading.Event()
        started = time.perf_counter()
        handle = self.submit(2, lambda delta: came.set())
        came.wait()
        seconds = time.perf_counter() - started
        handle.wait()
        return seconds

    def stop(self) -> None:
        self.engine.close()


class RestClient:
    """Streams of /v1, read with as little work as the standard library allows: it runs on the same two cores."""

    def __init__(self, web: str) -> None:
        self.address = urlsplit(web).netloc
        name = f"u{uuid.uuid4().hex[:12]}"
        account = {"username": name, "email": f"{name}@example.org", "password": uuid.uuid4().hex}
        connection = http.client.HTTPConnection(self.address)
        connection.request("POST", "/api/v1/auth/register", json.dumps(account), {"Content-Type": "application/json"})
        self.token = json.load(connection.getresponse())["token"]

    def answer(self, max_tokens: int) -> tuple[int, float]:
        """Tokens generated, and seconds to the first of them."""
        connection = http.client.HTTPConnection(self.address)
        body = {
            "model": "gemma-3-270m",
            "messages": MESSAGES,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        head = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        started, first, tokens = time.perf_counter(), 0.0, 0
        connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        while line := response.readline():
            if not first and b'"content": "' in line and b'"content": ""' not in line:
                first = time.perf_counter() - started
            elif b'"completion_tokens"' in line:
                tokens = json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"]
        connection.close()
        return tokens, first

    def tokens_per_second(self, concurrent: int, tokens_out: int) -> float:
        counts: list[int] = []
        threads = [
            threading.Thread(target=lambda: counts.append(self.answer(tokens_out)[0])) for _ in range(concurrent)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(counts) == concurrent
        return sum(counts) / (time.perf_counter() - started)

    def first_token(self) -> float:
        return self.answer(2)[1]


# --- jobs ---


def jobs(stack: "Stack", sizes: Sizes) -> None:
    import django

    django.setup()
    from apps.jobs.models import Job, State
    from apps.jobs.services import job_create
    from lyo.stack import WORKER
    from tests.bench.tasks import QUEUE, nothing, nothings_done

    options = ("--concurrency=8", "--hostname=bench@%h", f"--queues={QUEUE}", "--include=tests.bench.tasks")
    stack.supervisor.start(Process(name="bench", argv=(*WORKER, *options), env=stack.environment))

    def bare() -> float:
        start = nothings_done()
        started = time.perf_counter()
        for _ in range(sizes.jobs):
            nothing.apply_async(args=[str(uuid.uuid4())], queue=QUEUE)
        while nothings_done() < start + sizes.jobs:
            time.sleep(0.005)
        return sizes.jobs / (time.perf_counter() - started)

    def layer() -> float:
        ended = Job.objects.filter(kind="ping", state=State.SUCCEEDED)
        ended.delete()
        started = time.perf_counter()
        for number in range(sizes.jobs):
            job_create(kind="ping", request={"ping": number})
        while ended.count() < sizes.jobs:
            time.sleep(0.005)
        return sizes.jobs / (time.perf_counter() - started)

    print(
        f"\njobs/s, {sizes.jobs} made one after another and executed by one worker, median of {sizes.rounds} [min, max]"
    )
    report("Celery tasks, no result", bare, "Lyo jobs: row, claim, lease, end, stream", layer, sizes)


# --- reporting ---


def report(peer_name: str, peer: Callable[[], float], our_name: str, ours: Callable[[], float], sizes: Sizes) -> None:
    rounds = [(peer(), ours()) for _ in range(sizes.rounds + sizes.warm_up)][sizes.warm_up :]
    peers, own = zip(*rounds, strict=True)
    show(peer_name, peers)
    show(our_name, own, f"ratio {statistics.median(a / b for a, b in zip(own, peers, strict=True)):.2f}")


def show(name: str, values: Any, remark: str = "") -> None:
    print(f"  {name:<42}{statistics.median(values):8.1f} [{min(values):.1f}, {max(values):.1f}]   {remark}", flush=True)


if __name__ == "__main__":
    main()
