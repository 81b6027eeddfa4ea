"""A training run, step by step. Whoever iterates over it decides after each step whether there is a next one."""

import errno
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from workers.models.load import LoadedModel
from workers.protocols import Refused
from workers.training.checkpoint import META, Checkpoints, whole_folder
from workers.training.data import Sampler, Task, passes
from workers.training.loss import OBJECTIVES
from workers.training.model import Learner
from workers.training.recipe import Recipe

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_SPACE = os.strerror(errno.ENOSPC)  # as safetensors quotes it


@dataclass(frozen=True, slots=True)
class Metrics:
    """Of one step. Losses are means per learnt token, or for dpo and kto per item; before the step's own change."""

    step: int  # from 1
    steps: int  # of the whole run
    loss: float
    learning_rate: float
    grad_norm: float  # before it is clipped
    tokens: int
    tokens_per_second: float
    seconds_left: float
    peak_memory_mb: float  # of the device, or of this process where that is the CPU
    validation_loss: float | None = None  # after the step
    checkpoint: Path | None = None  # that was written after the step


class Run:
    """Takes over a loaded model and trains it; goes on from the newest checkpoint in `folder`, if there is one.

    With the same seed, data and recipe a run that was killed ends in the same weights as one that was not: to the bit
    on a CPU with the same number of threads, and elsewhere to what the order of sums changes.

        run = Run(loaded, recipe, tasks, folder / "checkpoints")
        for metrics in run:
            if is_cancelled():
                break
        run.publish(folder / "result")

    All that it raises on purpose is `Refused`: `invalid_recipe`; what `Learner` refuses; `checkpoint_mismatch`, where
    the checkpoint is another run's; `not_finite`; `out_of_memory`; `disk_full`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        recipe: Recipe,
        tasks: Sequence[Task],
        folder: Path,
        validation: Sequence[Task] = (),
    ) -> None:
        if recipe.max_length > loaded.context_tokens:
            longest = f"{loaded.name} reads {loaded.context_tokens} tokens"
            raise Refused("invalid_recipe", f"max_length is {recipe.max_length}, and {longest}: lower it")
        if recipe.patience and not validation:
            raise Refused(
                "invalid_recipe", f"patience is {recipe.patience}, and there are no examples to validate with"
            )
        self.recipe = recipe
        self.steps = recipe.steps(sum(len(task.items) for task in tasks))
        self.step = 0  # that are done
        self._validation = [item for task in validation for item in task.items]
        self._sampler = Sampler(tasks, recipe.batch_size, recipe.seed)
        self._objective = OBJECTIVES[recipe.method]
        self._checkpoints = Checkpoints(folder, recipe.keep_checkpoints)
        self._losses: dict[str, float] = {}
        self._best: tuple[int, float] | None = None  # step and validation loss
        self._worse = 0  # validations since then
        digests = [[task.digest for task in part] for part in (tasks, validation)]
        self._facts = {
            "base_model": loaded.name,
            "base_digest": loaded.digest,
            "data_digest": sha256(json.dumps(digests).encode()).hexdigest(),
            "tasks": [
                {"name": t.name, "weight": t.weight, "examples": len(t.items), "too_long": len(t.too_long)}
                for t in tasks
            ],
            "recipe": recipe.json(),
            "seed": recipe.seed,
        }
        with failures_that_happen():
            self.learner = Learner(loaded, recipe)
            weights = self.learner.trained.values()
            self._optimizer = AdamW(weights, weight_decay=recipe.weight_decay, fused=True)
            self._resume()

    @property
    def ended(self) -> bool:
        """Whether there is no next step: all are done, or validation has stopped the run."""
        return self.step >= self.steps or 0 < self.recipe.patience <= self._worse

    def __iter__(self) -> Iterator[Metrics]:
        first, started = self.step, time.perf_counter()
        while not self.ended:
            begun = time.perf_counter()
            with failures_that_happen():
                loss, grad_norm, tokens = self._learn()
                seconds = time.perf_counter() - begun
                validation_loss, checkpoint = self._look_back(loss)
            pace = (time.perf_counter() - started) / (self.step - first)
            yield Metrics(
                step=self.step,
                steps=self.steps,
                loss=loss,
                learning_rate=self._optimizer.param_groups[0]["lr"],
                grad_norm=grad_norm,
                tokens=tokens,
                tokens_per_second=tokens / seconds,
                seconds_left=0.0 if self.ended else pace * (self.steps - self.step),
                peak_memory_mb=peak_memory_mb(self.learner.device),
                validation_loss=validation_loss,
                checkpoint=checkpoint,
            )

    def save(self) -> Path:
        """Write a checkpoint of now, for a run that is to go on another time."""
        with failures_that_happen():
            spared = self._best[0] if self._best and self.recipe.patience else None
            return self._checkpoints.save(self.step, self.learner, self._optimizer, self._meta(), spared)

    def publish(self, target: Path) -> dict[str, Any]:
        """Write the new folder `target`: a PEFT folder that `workers.engine.lora` serves, or for full tuning a model.

        With patience it is of the step of the lowest validation loss, else of the last. Returns its meta.json.
        """
        with failures_that_happen():
            meta = self._meta()
            if self.recipe.patience and self._best and self._best[0] != self.step:
                best = self._checkpoints.path(self._best[0])
                self.learner.load(best)
                meta = json.loads((best / META).read_text())
            self._write(target, meta)
        return meta

    def snapshot(self, target: Path) -> None:
        """Write as `publish` does what has been learnt so far."""
        with failures_that_happen():
            self._write(target, self._meta())

    def _write(self, target: Path, meta: dict[str, Any]) -> None:
        with whole_folder(target) as folder:
            self.learner.publish(folder)
            (folder / META).write_text(json.dumps(meta, indent=2))

    def _learn(self) -> tuple[float, float, int]:
        """Take a step. Returns its loss, the gradient's norm and the count of tokens read."""
        learner, recipe = self.learner, self.recipe
        items = self._sampler.items(self.step)
        total = sum(map(self._objective.count, items))
        loss = 0.0
        learner.train(True)
        with seeded(f"{recipe.seed} {self.step}", learner.device):
            for part in passes(items, recipe.accumulation):
                part_loss = self._objective.loss(learner, part) / total
                part_loss.backward()
                loss += part_loss.item()
        grad_norm = clip_grad_norm_(learner.trained.values(), recipe.max_grad_norm).item()
        if not (isfinite(loss) and isfinite(grad_norm)):
            raise Refused(
                "not_finite",
                f"step {self.step + 1}: the loss is {loss} and its gradient's norm {grad_norm}. Lower learning_rate, "
                "lengthen warmup or use dtype float32; the checkpoints before this step are sound",
            )
        self._optimizer.param_groups[0]["lr"] = recipe.learning_rate_at(self.step, self.steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        return loss, grad_norm, sum(len(example.tokens) - 1 for item in items for example in item)

    def _look_back(self, loss: float) -> tuple[float | None, Path | None]:
        """Validate and write a checkpoint, where this step is one to do so after."""
        self._losses = {"train_loss": loss}
        due = self.step % self.recipe.checkpoint_every == 0
        validation_loss = None
        if self._validation and (self.step % self.recipe.validate_every == 0 or self.step == self.steps):
            self._losses["validation_loss"] = validation_loss = self._validate()
            if self._best is None or validation_loss < self._best[1]:
                self._best, self._worse = (self.step, validation_loss), 0
                due = due or self.recipe.patience > 0
            else:
                self._worse += 1
        return validation_loss, self.save() if due else None

    @torch.no_grad()
    def _validate(self) -> float:
        self.learner.train(False)
        size = -(-self.recipe.batch_size // self.recipe.accumulation)
        parts = passes(self._validation, -(-len(self._validation) // size))
        loss = sum(self._objective.loss(self.learner, part).item() for part in parts)
        return loss / sum(map(self._objective.count, self._validation))

    def _meta(self) -> dict[str, Any]:
        return {**self._facts, "metrics": {"step": self.step, **self._losses}, "best": self._best, "worse": self._worse}

    def _resume(self) -> None:
        meta = self._checkpoints.load_newest(self.learner, self._optimizer)
        if meta is None:
            return
        for name, value in self._facts.items():
            if meta[name] != value:
                problem = f"the newest checkpoint has {name} {meta[name]}, and this run has {value}"
                raise Refused("checkpoint_mismatch", f"{problem}: begin in another folder")
        self._losses = meta["metrics"]
        self.step = int(self._losses.pop("step"))
        self._best = meta["best"] and tuple(meta["best"])
        self._worse = meta["worse"]


@contextmanager
def seeded(seed: str, device: torch.device) -> Iterator[None]:
    """Torch's random numbers follow from `seed` here, and go on after it as if nothing had been."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(Random(seed).getrandbits(63))  # noqa: S311
        yield


@contextmanager
def failures_that_happen() -> Iterator[None]:
    """Turn what is no bug into `Refused` with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        advice = "raise accumulation, set gradient_checkpointing, or lower max_length or batch_size"
        raise Refused("out_of_memory", f"the memory is full: {advice}") from error
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) not in DISK_FULL and NO_SPACE not in str(error):
            raise
        advice = "make room, or lower keep_checkpoints; the run can then be resumed"
        raise Refused("disk_full", f"the disk is full: {advice}") from error


def peak_memory_mb(device: torch.device) -> float:
    """In MiB: the most that torch had on a GPU, else the most that this process had in memory since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
