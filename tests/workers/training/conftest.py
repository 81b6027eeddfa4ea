"""A tiny random Gemma 3 in a folder, with the packaged tokenizer, so that a run loads it as it loads any model."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tests.workers.conftest import gemma_folder
from workers.models.load import LoadedModel, load
from workers.models.tokenizer import Tokenizer
from workers.training.data import Example, Task
from workers.training.recipe import Recipe

CONFIG: dict[str, Any] = {
    "vocab_size": 262_144,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
RECIPE: dict[str, Any] = {
    "dtype": "float32",
    "r": 4,
    "alpha": 8,
    "batch_size": 4,
    "max_steps": 6,
    "learning_rate": 0.01,
    "max_length": 64,
    "checkpoint_every": 2,
    "validate_every": 2,
}


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    return Tokenizer.from_folder(gemma_folder())


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    Gemma3ForCausalLM(Gemma3TextConfig(**CONFIG)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(gemma_folder() / name, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Callable[[], LoadedModel]:
    """Makes a new copy, for a run takes over what it is given."""
    loaded = load(str(tiny_folder), tiny_folder.parent, device="cpu", dtype="float32")
    return lambda: replace(loaded, model=deepcopy(loaded.model))


def recipe(**changes: Any) -> Recipe:
    return Recipe.of(RECIPE | changes)


def task(name: str = "train", count: int = 10, weight: float = 1.0, seed: int = 0) -> Task:
    """Examples of 8 to 26 random tokens, the last 3 to 7 of which are learnt."""
    generator = torch.Generator().manual_seed(seed)

    def example(index: int) -> Example:
        length, learnt = 8 + 2 * (index % 10), 3 + index % 5
        tokens = torch.randint(1000, 2000, (length,), generator=generator).tolist()
        return Example(tuple(tokens), tuple(range(length - learnt, length)), liked=index % 2 == 0)

    return Task(name, tuple((example(index),) for index in range(count)), weight)


def pairs(count: int = 8) -> Task:
    """The same in twos, for dpo."""
    items = task(count=2 * count).items
    return Task("pairs", tuple((a[0], b[0]) for a, b in zip(items[::2], items[1::2], strict=True)))
