"""A run learns, ends where it should, goes on as if nothing had been, and fails with advice."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tests.workers.conftest import greedy
from tests.workers.conftest import run as run_engine
from tests.workers.training.conftest import pairs, recipe, task
from workers.engine.loop import LocalEngine
from workers.engine.lora import adapter_digest
from workers.models.load import LoadedModel, load
from workers.models.template import render
from workers.protocols import GenerateRequest, Refused, Sampling
from workers.training.__main__ import main
from workers.training.data import Task, encode
from workers.training.model import Learner
from workers.training.run import Metrics, Run, failures_that_happen

PINNED = [12.555083, 13.003868, 13.260642, 12.336477, 12.970490, 12.563085]
LESSON = {
    "messages": [
        {"role": "user", "content": "Name the moons of Mars."},
        {"role": "assistant", "content": "Phobos and Deimos."},
    ]
}

Tiny = Callable[[], LoadedModel]


def facts(rows: list[Metrics]) -> list[tuple[Any, ...]]:
    """What does not depend on the clock."""
    return [(m.step, m.steps, m.loss, m.learning_rate, m.grad_norm, m.tokens, m.validation_loss) for m in rows]


def folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- learning ---


def test_the_losses_are_these(tiny: Tiny, tmp_path: Path) -> None:
    """Pinned: whatever changes them changes what everybody trains."""
    rows = list(Run(tiny(), recipe(dropout=0), [task()], tmp_path))
    assert [m.loss for m in rows] == pytest.approx(PINNED, abs=1e-4)
    assert [(m.step, m.steps) for m in rows] == [(step, 6) for step in range(1, 7)]
    assert rows[-1].seconds_left == 0 < rows[0].seconds_left
    assert all(m.tokens_per_second > 0 and m.peak_memory_mb > 100 for m in rows)


@pytest.mark.parametrize("method", ["sft", "full"])
def test_more_passes_make_the_same_steps(method: str, tiny: Tiny, tmp_path: Path) -> None:
    one, four = (
        list(Run(tiny(), recipe(method=method, dropout=0, accumulation=n), [task()], tmp_path / str(n))) for n in (1, 4)
    )
    assert [m.loss for m in one] == pytest.approx([m.loss for m in four], abs=1e-4)
    assert [m.grad_norm for m in one] == pytest.approx([m.grad_norm for m in four], rel=1e-3)


def test_an_item_counts_for_as_many_tokens_as_are_learnt_of_it(tiny: Tiny, tmp_path: Path) -> None:
    """The loss of a step is the mean over its tokens, of whichever example."""
    first = next(iter(Run(tiny(), recipe(batch_size=10), [task()], tmp_path / "all")))
    alone = [
        (next(iter(Run(tiny(), recipe(batch_size=1), [replace(task(), items=(item,))], tmp_path / str(n)))), item)
        for n, item in enumerate(task().items)
    ]
    counts = [len(item[0].learnt) for _, item in alone]
    mean = sum(m.loss * count for (m, _), count in zip(alone, counts, strict=True)) / sum(counts)
    assert first.loss == pytest.approx(mean, abs=1e-4)


def test_preferences_begin_undecided_and_are_learnt(tiny: Tiny, tmp_path: Path) -> None:
    """A new adapter prefers nothing: -log 1/2 of a pair, 1 - 1/2 of a thumb."""
    for method, data, undecided in (("dpo", pairs(), math.log(2)), ("kto", task(count=8), 0.5)):
        changed = recipe(method=method, dropout=0, max_steps=8, batch_size=8, beta=1.0)
        losses = [m.loss for m in Run(tiny(), changed, [data], tmp_path / method)]
        assert losses[0] == pytest.approx(undecided, abs=1e-6)
        assert losses[-1] < 0.8 * undecided


def test_validation_watches_and_does_not_interfere(tiny: Tiny, tmp_path: Path) -> None:
    held_out = task("held out", count=5, seed=7)
    plain = list(Run(tiny(), recipe(), [task()], tmp_path / "plain"))
    watched = list(Run(tiny(), recipe(max_steps=6), [task()], tmp_path / "watched", [held_out]))
    assert [m.loss for m in watched] == [m.loss for m in plain]
    assert [m.validation_loss is not None for m in watched] == [False, True] * 3


def test_patience_ends_a_run_and_its_best_weights_are_the_result(tiny: Tiny, tmp_path: Path) -> None:
    """What is learnt by heart of one set makes another less likely, sooner or later."""
    changes = {"max_steps": 60, "learning_rate": 0.05, "patience": 2, "keep_checkpoints": 1, "checkpoint_every": 100}
    held_out = [task("held out", count=5, seed=7)]
    run = Run(tiny(), recipe(**changes), [task()], tmp_path / "checkpoints", held_out)
    rows = list(run)
    assert run.ended
    validated = {m.step: m.validation_loss for m in rows if m.validation_loss is not None}
    best = min(validated, key=lambda step: validated[step])
    assert rows[-1].step == best + 4 < 60
    assert [m.checkpoint.name for m in rows if m.checkpoint][-1] == f"step-{best:06}"
    meta = run.publish(tmp_path / "result")
    assert meta["metrics"]["validation_loss"] == validated[best]
    assert meta["metrics"]["step"] == best
    best_weights = (tmp_path / "checkpoints" / f"step-{best:06}" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "result" / "adapter_model.safetensors").read_bytes() == best_weights
    assert list(Run(tiny(), recipe(**changes), [task()], tmp_path / "checkpoints", held_out))[-1].step == rows[-1].step


# --- going on ---


@pytest.mark.parametrize("method", ["sft", "full", "dpo"])
def test_a_run_that_was_cut_off_goes_on_to_the_bit(method: str, tiny: Tiny, tmp_path: Path) -> None:
    data = [pairs()] if method == "dpo" else [task(), task("other", count=3, weight=2, seed=1)]
    chosen = recipe(method=method, dropout=0.2, accumulation=2, gradient_checkpointing=True)
    undisturbed = Run(tiny(), chosen, data, tmp_path / "whole")
    rows = list(undisturbed)
    with pytest.raises(ZeroDivisionError):
        for metrics in Run(tiny(), chosen, data, tmp_path / "cut"):
            assert metrics.step < 5 or 1 / 0
    resumed = Run(tiny(), chosen, data, tmp_path / "cut")
    assert resumed.step == 4
    assert facts(list(resumed)) == facts(rows)[4:]
    weights = undisturbed.learner.trained
    assert all(torch.equal(weights[name], weight) for name, weight in resumed.learner.trained.items())


def test_a_paused_run_goes_on_from_where_it_was(tiny: Tiny, tmp_path: Path) -> None:
    rows = list(Run(tiny(), recipe(), [task()], tmp_path / "whole"))
    paused = Run(tiny(), recipe(checkpoint_every=100), [task()], tmp_path / "paused")
    for metrics in paused:
        if metrics.step == 3:
            break
    assert paused.save().name == "step-000003"
    resumed = Run(tiny(), recipe(checkpoint_every=100), [task()], tmp_path / "paused")
    assert facts(list(resumed)) == facts(rows)[3:]


def test_a_killed_process_is_gone_on_from(tiny_folder: Path, tmp_path: Path) -> None:
    """By the command line, which trains what an undisturbed run trains."""
    data = tmp_path / "lesson.jsonl"
    data.write_text(json.dumps(LESSON) + "\n")

    def arguments(output: str) -> list[str]:
        model = ["--model", str(tiny_folder), "--models-dir", str(tiny_folder.parent), "--device", "cpu"]
        chosen = ["--recipe", "dtype=float32", "max_steps=30", "checkpoint_every=2", "batch_size=2", "max_length=64"]
        return [*model, "--data", str(data), "--output", str(tmp_path / output), *chosen]

    main(arguments("whole"))
    command = [sys.executable, "-m", "workers.training", *arguments("killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout
        next(line for line in child.stdout if line.endswith("wrote step-000004\n"))
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result").exists()
    main(arguments("killed"))
    assert adapter_digest(tmp_path / "killed" / "result") == adapter_digest(tmp_path / "whole" / "result")


def test_the_newest_checkpoints_are_kept_and_half_written_ones_ignored(tiny: Tiny, tmp_path: Path) -> None:
    rows = list(Run(tiny(), recipe(keep_checkpoints=2), [task()], tmp_path))
    assert folders(tmp_path) == ["step-000004", "step-000006"]
    assert [m.checkpoint and m.checkpoint.name for m in rows[:4]] == [None, "step-000002", None, "step-000004"]
    (tmp_path / "step-000006").rename(tmp_path / ".unfinished-a-step-000006")
    (tmp_path / ".unfinished-a-step-000006" / "optimizer.safetensors").unlink()
    assert Run(tiny(), recipe(keep_checkpoints=2), [task()], tmp_path).step == 4


@pytest.mark.parametrize(
    ("changes", "data", "named"),
    [({"seed": 1}, [task()], "recipe"), ({}, [task(seed=1)], "data_digest"), ({}, [task(), task("b")], "data_digest")],
)
def test_a_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any], data: list[Task], named: str, tiny: Tiny, tmp_path: Path
) -> None:
    list(Run(tiny(), recipe(), [task()], tmp_path))
    with pytest.raises(Refused, match=f"the newest checkpoint has {named} .*: begin in another folder") as refused:
        Run(tiny(), recipe(**changes), data, tmp_path)
    assert refused.value.code == "checkpoint_mismatch"


# --- failing ---


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_learnt(tiny: Tiny, tmp_path: Path) -> None:
    run = Run(tiny(), recipe(), [task()], tmp_path)
    rows = iter(run)
    next(rows), next(rows)
    poisoned = next(iter(run.learner.trained.values()))
    with torch.no_grad():
        poisoned[0, 0] = torch.nan
    others = [weight.clone() for weight in run.learner.trained.values() if weight is not poisoned]
    with pytest.raises(Refused, match=r"step 3: the loss is nan .* Lower learning_rate") as refused:
        next(rows)
    assert refused.value.code == "not_finite"
    now = [weight for weight in run.learner.trained.values() if weight is not poisoned]
    assert all(torch.equal(a, b) for a, b in zip(others, now, strict=True))
    assert Run(tiny(), recipe(), [task()], tmp_path).step == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_nothing_half_done(
    error: Exception, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_some(self: Learner, folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{")
        raise error

    rows = iter(Run(tiny(), recipe(), [task()], tmp_path))
    for _ in range(3):
        next(rows)
    monkeypatch.setattr(Learner, "save", save_some)
    with pytest.raises(Refused, match="the disk is full: make room, or lower keep_checkpoints") as refused:
        next(rows)
    assert refused.value.code == "disk_full"
    assert folders(tmp_path) == ["step-000002"]


def test_other_errors_stay_errors() -> None:
    for error in (OSError(errno.EACCES, "denied"), SafetensorError("no header"), RuntimeError("shapes differ")):
        with pytest.raises(type(error)), failures_that_happen():
            raise error


def test_out_of_memory_is_refused_with_advice() -> None:
    with (
        pytest.raises(Refused, match="raise accumulation, set gradient_checkpointing") as refused,
        failures_that_happen(),
    ):
        torch.empty(2**60)
    assert refused.value.code == "out_of_memory"


def test_more_than_the_model_can_read_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="max_length is 513, and tiny reads 512 tokens: lower it"):
        Run(tiny(), recipe(max_length=513), [task()], tmp_path)


def test_patience_without_anything_to_validate_with_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="patience is 2, and there are no examples to validate with"):
        Run(tiny(), recipe(patience=2), [task()], tmp_path)


def test_the_command_says_what_it_leaves_out_and_what_is_wrong(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 60}, *LESSON["messages"]]}
    data = tmp_path / "mixed.jsonl"
    data.write_text("\n".join(json.dumps(record) for record in (long, LESSON, LESSON)))
    model = ["--model", str(tiny_folder), "--models-dir", str(tiny_folder.parent), "--device", "cpu"]
    command = [*model, "--data", f"{data}:2", "--validation", str(data), "--output", str(tmp_path / "run"), "--recipe"]
    main([*command, "max_steps=1", "max_length=32", "validate_every=1", "targets=all-linear"])
    said = capsys.readouterr().out
    assert f"{data}: 2 examples\n{data}: left out, as longer than 32 tokens: examples 0\n" in said
    assert "28 weights are trained in 1 steps\nstep 1/1  loss 1" in said
    assert "0 s left  validation 1" in said
    data.write_text('{"messages": []}\n{')
    with pytest.raises(SystemExit, match=r"cannot train .*mixed\.jsonl, line 2: Expecting property name"):
        main(command)


# --- the result ---


def lesson(loaded: LoadedModel) -> tuple[Task, list[int], list[int]]:
    """Something to learn by heart, with its prompt and its answer."""
    made = encode(loaded.tokenizer, [LESSON], method="sft", max_length=64)
    ((example,),) = made.items
    prompt = render(loaded.tokenizer, LESSON["messages"][:1])
    return made, prompt, [example.tokens[place] for place in example.learnt]


def test_the_engine_serves_what_was_learnt(tiny: Tiny, tmp_path: Path) -> None:
    made, prompt, answer = lesson(tiny())
    chosen = recipe(targets="all-linear", batch_size=1, max_steps=10, checkpoint_every=100)
    run = Run(tiny(), chosen, [made], tmp_path / "checkpoints")
    list(run)
    meta = run.publish(tmp_path / "new")
    assert folders(tmp_path / "new") == ["adapter_config.json", "adapter_model.safetensors", "meta.json"]
    assert json.loads((tmp_path / "new" / "meta.json").read_text()) == meta
    assert (meta["base_digest"], meta["recipe"], meta["seed"]) == (tiny().digest, chosen.json(), 0)
    digest = adapter_digest(tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / digest)

    engine = LocalEngine.over(
        tiny(), kv_cache_mb=64, context_tokens=256, batch_limit=2, adapters_folder=tmp_path, max_lora_rank=4
    )
    base, said = tiny().model, []
    for adapter in (None, f"moons@{digest}"):
        request = GenerateRequest("a", tuple(prompt), Sampling(len(answer), temperature=0), adapter=adapter)
        handle = engine.submit(request, lambda delta: None)
        run_engine(engine)
        said.append(handle.wait(0).text)
    engine.close()
    learnt = run.learner.base
    learnt.set_attn_implementation("sdpa")
    learnt.train(False)
    expected = [tiny().tokenizer.decode(greedy(model, prompt, len(answer))) for model in (base, learnt)]
    assert said == expected
    assert said[0] != said[1]


def test_full_tuning_makes_a_model_in_its_bases_dtype(tiny: Tiny, tiny_folder: Path, tmp_path: Path) -> None:
    made, prompt, answer = lesson(tiny())
    chosen = recipe(method="full", batch_size=1, max_steps=60, checkpoint_every=100)
    run = Run(tiny(), chosen, [made], tmp_path / "checkpoints")
    list(run)
    run.publish(tmp_path / "tuned")
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_folder, tmp_path / "tuned"))
    assert {(name, w.dtype, w.shape) for name, w in before.items()} == {(n, w.dtype, w.shape) for n, w in after.items()}
    tuned = load(str(tmp_path / "tuned"), tmp_path, device="cpu", dtype="float32")
    assert greedy(tuned.model, prompt, len(answer)) == answer
    assert greedy(tiny().model, prompt, len(answer)) != answer
