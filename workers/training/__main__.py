"""Train from a shell: an adapter from a file of conversations, with the same run as a job's.

    python -m workers.training --model gemma-3-270m --models-dir .lyo/models --data maths.jsonl --output /tmp/maths \\
        --recipe max_steps=200 learning_rate=1e-4

It writes checkpoints into the output folder, and at the end `result` there. Started again, it goes on.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workers.models.load import LoadedModel, load
from workers.protocols import Refused
from workers.training.data import Task, encode, read_jsonl
from workers.training.recipe import Recipe
from workers.training.run import Metrics, Run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.training", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a name in workers/models/registry.py, a folder, or a hub id")
    parser.add_argument("--models-dir", type=Path, default=Path(".lyo/models"), help="where converted models are kept")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--data", action="append", required=True, metavar="FILE[:WEIGHT]", help="JSONL; several files are mixed"
    )
    parser.add_argument("--validation", type=Path, action="append", default=[], metavar="FILE", help="JSONL")
    parser.add_argument("--output", type=Path, required=True, help="a folder for this run alone")
    parser.add_argument("--recipe", nargs="*", default=[], metavar="NAME=VALUE", help="see workers/training/recipe.py")
    options = parser.parse_args(arguments)
    try:
        train(options)
    except (Refused, OSError) as error:
        sys.exit(f"cannot train {options.model}: {error}")


def train(options: argparse.Namespace) -> None:
    recipe = Recipe.of(dict(map(setting, options.recipe)))
    loaded = load(options.model, options.models_dir, device=options.device, dtype=recipe.weights_dtype)
    weighed = [(Path(file), float(weight or 1)) for file, _, weight in (given.partition(":") for given in options.data)]
    tasks = [task(loaded, recipe, file, weight) for file, weight in weighed]
    validation = [task(loaded, recipe, file) for file in options.validation]
    run = Run(loaded, recipe, tasks, options.output / "checkpoints", validation)
    say(f"{len(run.learner.trained)} weights are trained in {run.steps} steps")
    if run.step:
        say(f"resumed after step {run.step}")
    for metrics in run:
        say(line(metrics))
    run.publish(options.output / "result")
    say(f"done: {options.output / 'result'}")


def setting(given: str) -> tuple[str, Any]:
    """NAME=VALUE, the value being JSON, or else a text."""
    name, _, value = given.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def task(loaded: LoadedModel, recipe: Recipe, file: Path, weight: float = 1.0) -> Task:
    made = encode(
        loaded.tokenizer,
        read_jsonl(file),
        method=recipe.method,
        max_length=recipe.max_length,
        name=file.stem,
        weight=weight,
    )
    say(f"{file}: {len(made.items)} examples")
    if made.too_long:
        places = ", ".join(map(str, made.too_long))
        say(f"{file}: left out, as longer than {recipe.max_length} tokens: examples {places}")
    return made


def line(m: Metrics) -> str:
    parts = [
        f"step {m.step}/{m.steps}",
        f"loss {m.loss:.4f}",
        f"lr {m.learning_rate:.2e}",
        f"norm {m.grad_norm:.2f}",
        f"{m.tokens_per_second:.0f} tokens/s",
        f"{m.peak_memory_mb:.0f} MiB",
        f"{m.seconds_left:.0f} s left",
    ]
    if m.validation_loss is not None:
        parts.append(f"validation {m.validation_loss:.4f}")
    if m.checkpoint:
        parts.append(f"wrote {m.checkpoint.name}")
    return "  ".join(parts)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
