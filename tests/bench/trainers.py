"""Ways to train the same LoRA on the same batches with the same optimiser and schedule. See `peers.process`.

Given a `Job` as a line of JSON, a process trains in one way and tells the loss and the seconds of each step, and the
most memory that it had.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from lyo import env
from workers.models.load import load
from workers.training.data import Example, Sampler, Task
from workers.training.recipe import Recipe
from workers.training.run import Run, peak_memory_mb

IGNORED = -100  # transformers' label of a token that is not learnt


class Job(NamedTuple):
    """rows: token ids, all equally many, of whose last `answer` tokens the likelihood is learnt."""

    model: str
    folder: str
    rows: list[list[int]]
    answer: int
    batch: int
    steps: int
    checkpointing: bool

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            dropout=0,
            batch_size=self.batch,
            max_steps=self.steps,
            warmup=0,
            gradient_checkpointing=self.checkpointing,
            max_length=len(self.rows[0]),
            checkpoint_every=self.steps + 1,
        )

    @property
    def task(self) -> Task:
        return Task("rows", tuple((self._example(row),) for row in self.rows))

    def _example(self, row: list[int]) -> Example:
        return Example(tuple(row), tuple(range(len(row) - self.answer, len(row))))

    def batches(self) -> list[list[list[int]]]:
        """The rows of each step, as Lyo draws them."""
        sampler = Sampler([self.task], self.batch, self.recipe.seed)
        return [[list(example.tokens) for (example,) in sampler.items(step)] for step in range(self.steps)]

    def labels(self, row: list[int]) -> list[int]:
        return [IGNORED] * (len(row) - self.answer) + row[-self.answer :]

    def base(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.bfloat16)

    def lora(self) -> LoraConfig:
        recipe = self.recipe
        torch.manual_seed(recipe.seed)  # the same first weights
        targets = list(recipe.targets)
        return LoraConfig(
            r=recipe.r, lora_alpha=int(recipe.alpha), lora_dropout=0, target_modules=targets, task_type="CAUSAL_LM"
        )


Told = tuple[list[float], list[float]]  # of each step: loss, seconds


def lyo(job: Job) -> Told:
    loaded = load(job.model, env.MODELS_DIR, dtype=job.recipe.weights_dtype)
    with TemporaryDirectory() as folder:
        rows = list(Run(loaded, job.recipe, [job.task], Path(folder)))
    return [m.loss for m in rows], [m.tokens / m.tokens_per_second for m in rows]


def plain(job: Job) -> Told:
    """What a tutorial writes down."""
    model = get_peft_model(job.base(), job.lora())
    if job.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0)
    losses, seconds = [], []
    for step, rows in enumerate(job.batches()):
        begun = time.perf_counter()
        optimizer.param_groups[0]["lr"] = job.recipe.learning_rate_at(step, job.steps)
        ids, labels = torch.tensor(rows), torch.tensor([job.labels(row) for row in rows])
        loss: Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        clip_grad_norm_(weights, job.recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begun)
    return losses, seconds


def trl(job: Job) -> Told:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [row for rows in job.batches() for row in rows]
    seconds: list[float] = []

    class Clock(TrainerCallback):
        begun = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.begun)

    with TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=True,
            per_device_train_batch_size=job.batch,
            max_steps=job.steps,
            learning_rate=job.recipe.learning_rate,
            lr_scheduler_type="cosine",
            max_grad_norm=job.recipe.max_grad_norm,
            gradient_checkpointing=job.checkpointing,
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            job.base(),
            args=config,
            train_dataset=Dataset.from_dict({"input_ids": rows, "labels": [job.labels(row) for row in rows]}),
            peft_config=job.lora(),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], seconds


WAYS: dict[str, Callable[[Job], Told]] = {"lyo": lyo, "plain": plain, "trl": trl}


def main() -> None:
    way, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    disable_progress_bar()
    losses, seconds = WAYS[way](Job(*json.loads(sys.stdin.readline())))
    print(json.dumps([losses, seconds, peak_memory_mb(torch.device("cpu"))]), flush=True)


if __name__ == "__main__":
    main()
