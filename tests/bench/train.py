"""A LoRA step of Lyo against what one would train with instead: `make bench-train`.

TRL's SFTTrainer, a plain PyTorch loop and Lyo, each with and without gradient checkpointing and in a process of its
own for its peak of memory, round by round in turns: same model, first weights, batches, optimiser and schedule, in
bfloat16, without dropout. Prints a table, and writes all figures with a description of the machine to
.lyo/bench/train.json.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch

from tests.bench import peers
from tests.bench.engine import MODEL, OUTPUT, Figures, Prose, machine, model_files, threads
from tests.bench.trainers import Job

BATCH, TOKENS, ANSWER = 4, 256, 96


class Way(NamedTuple):
    name: str
    trainer: str
    checkpointing: bool


WAYS = [
    Way(name + (", checkpointing" if checkpointing else ""), trainer, checkpointing)
    for name, trainer in (("TRL SFTTrainer", "trl"), ("plain PyTorch", "plain"), ("Lyo", "lyo"))
    for checkpointing in (False, True)
]


class Result(NamedTuple):
    """losses, seconds: of each step."""

    losses: list[float]
    seconds: list[float]
    peak_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a round; the first is not counted in the speed")
    parser.add_argument("--smoke", action="store_true", help="a round of two short steps: shows that it runs")
    options = parser.parse_args()
    rounds, steps, tokens = (1, 2, 128) if options.smoke else (options.rounds, options.steps, TOKENS)

    torch.set_num_threads(threads())
    prose = Prose(2)
    rows = [list(prose.prompt(tokens)) for _ in range(BATCH * steps)]
    ways = [way for way in WAYS if not (options.smoke and way.checkpointing)]
    results: dict[str, list[Result]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            job = Job(MODEL, str(model_files()), rows, ANSWER, BATCH, steps, way.checkpointing)
            with peers.process("tests.bench.trainers", way.trainer, threads()) as pipes:
                results[way.name].append(Result(*pipes.call(*job)))
            speed = BATCH * tokens / statistics.median(results[way.name][-1].seconds)
            print(f"{way.name}: {speed:.0f} tokens/s", flush=True)
    report(results, BATCH * tokens)
    output = OUTPUT.with_name("train.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    runs = {name: [result._asdict() for result in all_rounds] for name, all_rounds in results.items()}
    figures: Figures = {"model": MODEL, "machine": machine(), "batch": [BATCH, tokens, ANSWER], "rounds": runs}
    output.write_text(json.dumps(figures, indent=2))
    print(f"\n{output}")


def report(results: dict[str, list[Result]], tokens: int) -> None:
    speeds = {name: [tokens / s for r in rounds for s in r.seconds[1:]] for name, rounds in results.items()}
    peaks = {name: max(r.peak_mb for r in rounds) for name, rounds in results.items()}
    theirs = [way.name for way in WAYS if way.trainer == "trl" and way.name in results]
    fastest = max(theirs, key=lambda name: statistics.median(speeds[name]))
    print(f"\nLoRA step of {MODEL} in bfloat16, {tokens} tokens; tokens/s: median [min, max]; peak memory, MiB")
    for name, values in speeds.items():
        speed = statistics.median(values)
        spread = f"[{min(values):.0f}, {max(values):.0f}]"
        times, memory = speed / statistics.median(speeds[fastest]), peaks[name] / peaks[fastest]
        print(f"  {name:<32}{speed:7.0f} {spread:<14}{peaks[name]:8.0f}   {times:.2f} and {memory:.2f} of {fastest}")
    print("\nloss by step, and the largest difference from SFTTrainer's")
    expected = results[theirs[0]][0].losses
    for name, rounds in results.items():
        losses = rounds[0].losses
        print(f"  {name:<32}{' '.join(f'{loss:.4f}' for loss in losses)}   {difference(losses, expected):.2%}")


def difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(ours / theirs - 1) for ours, theirs in zip(losses, expected, strict=True))


if __name__ == "__main__":
    main()
