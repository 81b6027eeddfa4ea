"""What a killed run goes on from: folders of weights, optimiser state and a meta.json. Nothing is pickled.

A folder is written under another name and renamed when all of it is on disk, so what has its name is whole. Batches,
dropout and learning rates are functions of the seed and the step, so there is no more to keep.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from workers.training.model import Learner

OPTIMIZER, META = "optimizer.safetensors", "meta.json"


class Checkpoints:
    """Those of one run; only one process may write them. `folder` is made when the first is written."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def path(self, step: int) -> Path:
        return self._folder / f"step-{step:06}"

    def all(self) -> list[Path]:
        """The oldest first."""
        return sorted(self._folder.glob("step-*"))

    def save(
        self, step: int, learner: Learner, optimizer: Optimizer, meta: Mapping[str, Any], spared: int | None
    ) -> Path:
        """Write a checkpoint, then delete all but the newest `keep` and that of the step `spared`."""
        target = self.path(step)
        with whole_folder(target) as folder:
            learner.save(folder)
            save_file(optimizer_state(optimizer, learner.trained), folder / OPTIMIZER)
            (folder / META).write_text(json.dumps(meta, indent=2))
        for old in self.all()[: -self._keep]:
            if spared is None or old != self.path(spared):
                shutil.rmtree(old)
        return target

    def load_newest(self, learner: Learner, optimizer: Optimizer) -> dict[str, Any] | None:
        """Restore the newest checkpoint, if there is one, and return its meta.json."""
        if not (found := self.all()):
            return None
        learner.load(found[-1])
        load_optimizer_state(optimizer, learner.trained, load_file(found[-1] / OPTIMIZER))
        meta: dict[str, Any] = json.loads((found[-1] / META).read_text())
        return meta


def optimizer_state(optimizer: Optimizer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value for name, weight in weights.items() for key, value in optimizer.state[weight].items()
    }


def load_optimizer_state(optimizer: Optimizer, weights: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for key, value in saved.items():
        name, _, part = key.rpartition(".")
        optimizer.state[weights[name]][part] = value.to(weights[name].device)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder that gets its name `target` when it is complete and on disk, or is deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".unfinished-") as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        yield folder
        for path in [*folder.iterdir(), folder]:
            fsync(path)
        folder.rename(target)
    fsync(target.parent)


def fsync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
