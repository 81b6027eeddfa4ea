"""Whether memory is bounded and given back: `make soak MINUTES=60` runs a mixed load against a stack of its own.

Learners ask, embed, search and do things with items; adapters come and go; hostile prompts and schemas are sent. Every
minute prints each process's memory. Exits with 1 where a process ends above 1.1 times its peak of the first ten
minutes (of the first half, of a shorter run), or the generate worker is ever above its KV cache and 1.5 GB (1.9 where
the processor has no bfloat16).
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import httpx
import psutil

if TYPE_CHECKING:
    from lyo.stack import Stack

HOME = Path(__file__).resolve().parents[2] / ".lyo" / "soak"
MIB = 2**20
ADAPTERS = 10  # two more than are in memory at a time
GROWTH, REST_MIB = 1.1, 1536
FLOAT32_MIB = 448  # that layers and adapters take beyond that where the processor has no bfloat16
SMOKE_S = 6.0
WATCHED = ("web", "generate", "train", "default", "beat")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--smoke", action="store_true", help="six seconds: shows that it runs, and judges no growth")
    options = parser.parse_args()
    os.environ |= {"LYO_HOME": str(HOME), "LYO_LOG_LEVEL": "WARNING"}
    from lyo.stack import Stack

    limits = ("GENERATIONS_PER_MINUTE", "REGISTRATIONS_PER_MINUTE", "REQUESTS_PER_MINUTE")
    stack = Stack(HOME, say=lambda name, line: None, extra={f"LYO_{name}": "1000000" for name in limits})
    print("starting a stack …", flush=True)
    with stack:
        sys.exit(soak(stack, SMOKE_S if options.smoke else options.minutes * 60, judges_growth=not options.smoke))


def soak(stack: "Stack", seconds: float, *, judges_growth: bool = True) -> int:
    """Returns 1 where a bound was passed, else 0; prints the table."""
    import torch

    from lyo import env
    from workers.models.load import best_dtype

    rest = REST_MIB + (FLOAT32_MIB if best_dtype(torch.device("cpu")) == torch.float32 else 0)
    load = Load(stack)
    load.start()
    began = time.monotonic()
    table: list[dict[str, float]] = []
    print(
        "minute  " + "".join(f"{name:>10}" for name in WATCHED) + "    MiB; requests answered, refused, failed",
        flush=True,
    )
    while time.monotonic() - began < seconds:
        time.sleep(min(60.0, seconds / 10))
        table.append(memory(stack))
        row = "".join(f"{table[-1][name]:10.0f}" for name in WATCHED)
        print(f"{(time.monotonic() - began) / 60:6.1f}  {row}    {load.counts()}", flush=True)
    load.stop()
    early = max(1, min(len(table) // 2, round(len(table) * 600 / seconds)))
    passed = past_bounds(table, early if judges_growth else len(table), env.KV_CACHE_MB + rest)
    if load.failed:
        passed.append(f"{load.failed} requests failed: {load.failures}")
    if not load.answered:
        passed.append("no request was answered")
    print("\n".join(passed) or "all bounds held")
    return int(bool(passed))


def memory(stack: "Stack") -> dict[str, float]:
    pids = stack.supervisor.pids()
    return {name: psutil.Process(pids[name]).memory_info().rss / MIB for name in WATCHED}


def past_bounds(table: list[dict[str, float]], early: int, bound: float) -> list[str]:
    """What is wrong with the memory of each process, in words. early: rows of the table; bound: of generate, in MiB."""
    passed = [problem for name in WATCHED if (problem := growth(name, [row[name] for row in table], early))]
    if (peak := max(row["generate"] for row in table)) > bound:
        passed.append(f"generate had {peak:.0f} MiB; {bound:.0f} are its bound")
    return passed


def growth(name: str, values: list[float], early: int) -> str:
    """What is wrong with how a process's memory went; "" where nothing is."""
    peak, end = max(values[:early]), values[-1]
    return f"{name} ended with {end:.0f} MiB, {end / peak:.2f} times its early peak" if end > GROWTH * peak else ""


class Load:
    """Threads that each do one thing again and again."""

    def __init__(self, stack: "Stack") -> None:
        self.stack = stack
        self.answered = self.refused = self.failed = 0
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        adapters = imported_adapters(self.stack)
        for act in (self.tutor, self.tutor, self.ask_long, self.embed, self.search, self.learn, self.hostile):
            self._begin(act)
        self._begin(lambda client: self.ask_adapters(client, adapters))

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def counts(self) -> str:
        return f"{self.answered}, {self.refused}, {self.failed}"

    def _begin(self, act: Callable[[httpx.Client], Iterator[httpx.Response]]) -> None:
        def run() -> None:
            client = new_client(self.stack.web)
            while not self._over.is_set():
                try:
                    for response in act(client):
                        self._count(response)
                        if self._over.wait(0.2):
                            return
                except httpx.HTTPError as error:
                    self._fail(repr(error))

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def _count(self, response: httpx.Response) -> None:
        if response.status_code < 400:
            self.answered += 1
        elif response.status_code < 500:
            self.refused += 1
        else:
            self._fail(response.text[:100])

    def _fail(self, why: str) -> None:
        self.failed += 1
        self.failures = [*self.failures[-4:], why]

    # --- what they do ---

    def tutor(self, client: httpx.Client) -> Iterator[httpx.Response]:
        talk = client.post("/api/v1/tutor/conversations", json={"subject": "math"}).json()["id"]
        for number in range(5):
            text = f"What is {number + 2} times {time.time_ns() % 97}? " * (1 + 20 * (number % 2))
            question = {"content": text, "max_tokens": 64}
            url = f"/api/v1/tutor/conversations/{talk}/messages"
            yield client.post(url, json=question, headers={"Accept": "text/event-stream"})
            yield client.get(url)

    def ask_long(self, client: httpx.Client) -> Iterator[httpx.Response]:
        """Have the cache of keys and values full within minutes: what it holds is no growth later on."""
        numbers = Random(time.time_ns())
        text = " ".join(str(numbers.randint(100, 999)) for _ in range(500))  # 2,000 tokens
        yield client.post("/v1/chat/completions", json=chat("tutor", text, max_tokens=1))

    def embed(self, client: httpx.Client) -> Iterator[httpx.Response]:
        sizes = Random(time.time_ns())
        texts = ["energy and light " * sizes.randint(1, 400) for _ in range(sizes.randint(1, 64))]
        yield client.post("/v1/embeddings", json={"model": "all-MiniLM-L6-v2", "input": texts})

    def search(self, client: httpx.Client) -> Iterator[httpx.Response]:
        yield client.get("/api/v1/search", params={"q": f"how do plants turn light into food {time.time_ns() % 1000}"})

    def learn(self, client: httpx.Client) -> Iterator[httpx.Response]:
        feed = client.get("/api/v1/feed", params={"page_size": 5})
        yield feed
        events = [{"item": entry["item"]["id"], "type": "complete"} for entry in feed.json().get("results", ())]
        if events:
            yield client.post("/api/v1/feed/events", json={"events": events})

    def ask_adapters(self, client: httpx.Client, adapters: list[str]) -> Iterator[httpx.Response]:
        for name in adapters:
            yield client.post("/v1/chat/completions", json=chat(name, "What is light?", max_tokens=16))

    def hostile(self, client: httpx.Client) -> Iterator[httpx.Response]:
        yield client.post("/v1/chat/completions", json=chat("tutor", "9f3a" * 400_000, n=4))
        yield client.post("/v1/chat/completions", json=chat("tutor", "a b " * 40_000, n=4))
        for schema in ({"type": "integer", "multipleOf": 600_011}, {"type": "string", "pattern": "(a|aa)+$"}):
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            yield client.post("/v1/chat/completions", json=chat("tutor", "x", max_tokens=16, response_format=form))


def chat(model: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def new_client(web: str) -> httpx.Client:
    name = f"u{time.time_ns()}"
    body = {"username": name, "email": f"{name}@example.org", "password": "correct-horse-9-battery"}
    made = httpx.post(f"{web}/api/v1/auth/register", json=body, timeout=60).raise_for_status()
    return httpx.Client(base_url=web, headers={"Authorization": f"Bearer {made.json()['token']}"}, timeout=600)


def imported_adapters(stack: "Stack") -> list[str]:
    """The names of adapters that differ from the shipped one by a factor."""
    import io
    import json
    import zipfile

    from safetensors.torch import load_file, save

    from lyo.stack import TUTOR

    login = httpx.post(f"{stack.web}/api/v1/auth/login", json=stack.admin, timeout=60).raise_for_status()
    staff = httpx.Client(base_url=stack.web, headers={"Authorization": f"Bearer {login.json()['token']}"}, timeout=600)
    weights = load_file(TUTOR / "adapter_model.safetensors")
    for number in range(ADAPTERS):
        scaled = {name: tensor * (0.5 + number / 20) for name, tensor in weights.items()}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("adapter_config.json", (TUTOR / "adapter_config.json").read_text())
            archive.writestr("meta.json", json.dumps(json.loads((TUTOR / "meta.json").read_text())))
            archive.writestr("adapter_model.safetensors", save(scaled))
        staff.post(
            "/api/v1/training/adapters",
            files={"file": ("adapter.zip", packed.getvalue())},
            data={"suffix": f"soak-{number}"},
        ).raise_for_status()
    names: list[str] = []
    end = time.monotonic() + 300
    while len(names) < ADAPTERS and time.monotonic() < end:
        time.sleep(1)
        models = staff.get("/v1/models").json()["data"]
        names = [model["id"] for model in models if ":soak-" in model["id"]]
    return names


if __name__ == "__main__":
    main()
