"""Models for the torch side's tests: tiny random ones, and the real Gemma 3 270M in float32."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from tests.helpers import until
from workers.engine.linear import packable
from workers.engine.loop import LocalEngine
from workers.models.load import LoadedModel, load
from workers.models.packaged import packaged_folder
from workers.models.registry import REGISTRY
from workers.models.tokenizer import Tokenizer
from workers.protocols import Engine, Handle

torch.set_num_threads(1)  # two threads that share their cores with other work wait for each other most of the time

needs_kernels = pytest.mark.skipif(
    not packable(torch.zeros(1, dtype=torch.bfloat16)), reason="oneDNN's kernels for this are x86's"
)
MODELS_DIR = Path(os.environ.get("LYO_MODELS_DIR", Path(__file__).parents[2] / ".lyo" / "models"))


@cache
def gemma_folder() -> Path:
    """The packaged model's folder, made from its GGUF where nothing has done so yet."""
    return packaged_folder(REGISTRY["gemma-3-270m"], MODELS_DIR)


@pytest.fixture(scope="session")
def gemma() -> LoadedModel:
    """The packaged model in float32, for transformers' own functions."""
    return load("gemma-3-270m", MODELS_DIR, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tokenizer(gemma: LoadedModel) -> Tokenizer:
    return gemma.tokenizer


@pytest.fixture(scope="session")
def gemma_engine() -> LocalEngine:
    """An engine over a second copy of the packaged model; tests leave it idle."""
    loaded = load("gemma-3-270m", MODELS_DIR, device="cpu", dtype="float32")
    return LocalEngine.over(loaded, kv_cache_mb=512, context_tokens=2048, batch_limit=8)


def greedy(model: torch.nn.Module, prompt: list[int], count: int, stop_ids: list[int] | None = None) -> list[int]:
    """What transformers' own `generate` says after `prompt`, one prompt at a time."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=stop_ids,
    )
    return output[0, len(prompt) :].tolist()


def run(engine: LocalEngine, until: Callable[[], bool] | None = None) -> None:
    """Step the engine until nothing is left to do, or `until` says so."""
    while not (until and until()) and engine.step():
        pass


class Hang:
    """Stands still where it is called, until it may go on."""

    def __init__(self) -> None:
        self.stuck, self.go_on = Event(), Event()

    def __call__(self) -> None:
        self.stuck.set()
        self.go_on.wait(5)


def assert_seen(engine: Engine, hang: Hang, handle: Handle[Any]) -> None:
    """An engine that stands still in a request tells for how long, until it has gone on."""
    assert hang.stuck.wait(5)
    until(lambda: engine.stats().step_seconds > 0.1)
    hang.go_on.set()
    handle.wait(5)
    until(lambda: engine.stats().step_seconds == 0)
