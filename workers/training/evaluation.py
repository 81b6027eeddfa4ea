"""Adapters and their base model side by side on the same items.

    python -m workers.training.evaluation --model gemma-3-270m --adapter /tmp/maths/result --items hints.jsonl

An engine scores the items' reference replies and makes its own, greedily. The requests of all candidates share its
batches, as rows with adapters of their own, behind those of learners.
"""

import argparse
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, TypeVar

from workers.models.tokenizer import Tokenizer
from workers.protocols import Engine, GenerateRequest, Handle, Outcome, Refused, Sampling, ScoreRequest, Scores
from workers.scoring.number import number_expected, number_tree
from workers.training.data import example_of, read_jsonl
from workers.training.measures import Item, Reply, compare

MAX_TOKENS = 256  # of a reply; one that is longer has not ended its turn
PRIORITY = 2  # behind all that somebody waits for
POLL_S = 0.5  # how soon it is noticed that the evaluation is to stop
BASE = "base"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """items: how many were judged; too_long: how many do not fit into the context. measures: see `compare`."""

    items: int
    too_long: int
    measures: dict[str, Any]


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    candidates: Mapping[str, str | None],
    *,
    max_tokens: int = MAX_TOKENS,
    temperature: float = 0.0,
    priority: int = PRIORITY,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stopped: Event | None = None,
) -> Evaluation:
    """Compare candidates, the first with the others.

    candidates: the adapter, or None for the base model, by the name that the report has for it. temperature: of the
    replies; an item has the same random numbers for all candidates. progress: is told how many replies are there, of
    how many. stopped: set from another thread to give up. An engine that tells no log-probabilities leaves out the
    measures that need them. Raises `Refused` (`no_items`, `cancelled`, or the engine's).
    """
    problems = [_Problem.of(tokenizer, item) for item in items]
    fitting = [p for p in problems if len(p.prompt) + max(len(p.reference), max_tokens) <= engine.context_tokens]
    if not fitting:
        raise Refused("no_items", "there is no item to judge by that fits into the context")
    adapters = list(dict.fromkeys(candidates.values()))
    replies: dict[str | None, list[Reply]] = {adapter: [] for adapter in adapters}
    total = len(fitting) * len(adapters)
    asking = (
        (adapter, _Asked(engine, tokenizer, problem, adapter, Sampling(max_tokens, temperature, seed=seed), priority))
        for seed, problem in enumerate(fitting)
        for adapter in adapters
    )
    waiting = deque(islice(asking, 2 * engine.stats().batch_limit))
    try:
        for done in range(1, total + 1):
            adapter, asked = waiting[0]
            replies[adapter].append(asked.reply(stopped or Event()))
            waiting.popleft()
            waiting.extend(islice(asking, 1))
            progress(done, total)
    finally:
        for _, asked in waiting:
            asked.cancel()
    judged = [problem.item for problem in fitting]
    measures = compare(judged, {who: replies[adapter] for who, adapter in candidates.items()})
    return Evaluation(len(fitting), len(problems) - len(fitting), measures)


@dataclass(frozen=True, slots=True)
class _Problem:
    """An item as tokens: up to where the reply begins, and the reference reply with its turn end."""

    item: Item
    prompt: tuple[int, ...]
    reference: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, item: Item) -> "_Problem":
        example = example_of(tokenizer, item.messages, last=True)
        start = example.learnt[0]
        return cls(item, example.tokens[:start], example.tokens[start:])


class _Asked:
    """The requests that make a reply."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        problem: _Problem,
        adapter: str | None,
        sampling: Sampling,
        priority: int,
    ) -> None:
        def score(continuations: tuple[tuple[int, ...], ...], labels: tuple[int, ...] = ()) -> Handle[Scores] | None:
            request = ScoreRequest(
                "evaluation", problem.prompt, continuations, labels, priority=priority, adapter=adapter
            )
            try:
                return engine.score(request)
            except Refused as refused:
                if refused.code == "unsupported":
                    return None
                raise

        self._tokens = len(problem.reference)
        self._reference = score((problem.reference,))
        self._engagement: Handle[Scores] | None = None
        self._answer: Handle[Outcome] | None = None
        if problem.item.expected_engagement is None:
            request = GenerateRequest("evaluation", problem.prompt, sampling, priority=priority, adapter=adapter)
            self._answer = engine.submit(request, lambda _: None)
        else:
            self._engagement = score(*number_tree(tokenizer))

    def reply(self, stopped: Event) -> Reply:
        reference = _outcome(self._reference, stopped)
        answer = _outcome(self._answer, stopped)
        engagement = _outcome(self._engagement, stopped)
        return Reply(
            logprob=sum(reference.logprobs[0]) if reference else math.nan,
            tokens=self._tokens,
            text=answer.text if answer else "",
            ended=answer is not None and answer.finish_reason == "stop",
            engagement=number_expected(engagement.logprobs) if engagement else math.nan,
        )

    def cancel(self) -> None:
        for handle in (self._reference, self._answer, self._engagement):
            if handle:
                handle.cancel()


def _outcome(handle: Handle[T] | None, stopped: Event) -> T | None:
    while handle:
        if stopped.is_set():
            raise Refused("cancelled", "the evaluation was stopped")
        try:
            return handle.wait(POLL_S)
        except TimeoutError:
            continue
    return None


# --- from a shell ---


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    try:
        report = report_of(options)
    except (Refused, OSError) as error:
        sys.exit(f"cannot evaluate {options.adapter}: {error}")
    for line in table(report["measures"]):
        print(line)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m workers.training.evaluation", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--model", required=True, help="a name in workers/models/registry.py, a folder, or a hub id")
    parser.add_argument("--models-dir", type=Path, default=Path(".lyo/models"), help="where converted models are kept")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16, float32 or int8")
    parser.add_argument("--adapter", required=True, metavar="FOLDER[,FOLDER]", help="the first is compared with others")
    parser.add_argument("--items", type=Path, action="append", required=True, metavar="FILE", help="JSONL")
    parser.add_argument("--limit", type=int, help="items of each file, from its beginning")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="of a reply")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the replies; 0, the default, is greedy")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the report there, too")
    return parser.parse_args(arguments)


def report_of(options: argparse.Namespace) -> dict[str, Any]:
    from workers.engine.loop import LocalEngine
    from workers.engine.lora import adapter_digest
    from workers.models.load import load

    items = [item for file in options.items for item in islice(read_items(file), options.limit)]
    loaded = load(options.model, options.models_dir, device=options.device, dtype=options.dtype)
    with TemporaryDirectory() as place:
        names: dict[str, str | None] = {}
        for folder in map(Path, options.adapter.split(",")):
            digest = adapter_digest(folder)
            copytree(folder, Path(place) / digest)
            names[str(folder)] = f"{folder.name}@{digest}"
        engine = LocalEngine.over(
            loaded, kv_cache_mb=1024, context_tokens=4096, batch_limit=32, adapters_folder=Path(place)
        )
        engine.start()
        try:
            made = evaluate(
                engine,
                loaded.tokenizer,
                items,
                {**names, BASE: None},
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                progress=lambda done, total: print(f"\r{done}/{total} ", end="", file=sys.stderr, flush=True),
            )
        finally:
            engine.close()
    print(file=sys.stderr)
    files = [str(file) for file in options.items]
    return {
        "files": files,
        "dtype": engine.numerics,
        "items": made.items,
        "too_long": made.too_long,
        "measures": made.measures,
    }


def read_items(file: Path) -> Iterator[Item]:
    for number, record in enumerate(read_jsonl(file), start=1):
        try:
            yield Item.of(record)
        except Refused as refused:
            raise Refused(refused.code, f"{file}, line {number}: {refused}") from refused


def table(measures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Lines for people: a measure in each row, those who replied side by side."""
    for name, measure in measures.items():
        estimates = {who: figures for who, figures in measure.items() if isinstance(figures, dict)}
        n = next(iter(estimates.values()))["n"]
        yield f"{name} ({measure['better']} is better, n {n})"
        for who, figures in estimates.items():
            yield "  {who:<40}{mean:>9.4f}  [{low:.4f}, {high:.4f}]".format(who=who, **figures)


if __name__ == "__main__":
    main()
