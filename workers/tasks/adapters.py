"""The store of adapters: PEFT folders under their digests, where the engines of all workers find them."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apps.inference.models import Adapter
from apps.inference.services import adapter_add
from lyo import env
from workers.engine.lora import META, adapter_digest
from workers.training.checkpoint import fsync


def adapter_publish(
    write: Callable[[Path], Any], *, suffix: str, task: str, subject: str, dataset_version: str
) -> Adapter:
    """Keep the PEFT folder that `write` makes, and enter it: it serves from then on.

    What is in the store is whole, for a folder gets its name when all of it is on disk. The same weights are the
    adapter that is there.
    """
    env.ADAPTERS_DIR.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=env.ADAPTERS_DIR, prefix=".unfinished-") as temporary:
        folder = Path(temporary) / "adapter"
        write(folder)
        meta = {**json.loads((folder / META).read_text()), "dataset_version": dataset_version, "suffix": suffix}
        (folder / META).write_text(json.dumps(meta, indent=2))
        digest = adapter_digest(folder)
        for path in [*folder.iterdir(), folder]:
            fsync(path)
        size = sum(path.stat().st_size for path in folder.iterdir())
        target = env.ADAPTERS_DIR / digest
        if not target.exists():
            folder.rename(target)
    fsync(env.ADAPTERS_DIR)
    return adapter_add(
        suffix=suffix,
        digest=digest,
        base_model=meta["base_model"],
        base_digest=meta["base_digest"],
        dataset_version=dataset_version,
        recipe=meta["recipe"],
        metrics=meta["metrics"],
        task=task,
        subject=subject,
        size=size,
    )
