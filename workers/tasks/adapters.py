"""The store of adapters: PEFT folders under their digests, where the engines of all workers find them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apps.inference import store
from apps.inference.models import Adapter
from apps.inference.services import adapter_add
from lyo import env
from workers.engine.lora import META, adapter_digest
from workers.training.checkpoint import whole_folder


def adapter_publish(
    write: Callable[[Path], Any], *, suffix: str, task: str, subject: str, dataset_version: str
) -> Adapter:
    """Keep the PEFT folder that `write` makes, and enter it: it serves from then on.

    What is in the store is whole, for a folder gets its name when all of it is on disk. The same weights are the
    adapter that is there.
    """
    with TemporaryDirectory(prefix="lyo-adapter-") as temporary:
        folder = Path(temporary) / "adapter"
        write(folder)
        meta = {**json.loads((folder / META).read_text()), "dataset_version": dataset_version, "suffix": suffix}
        (folder / META).write_text(json.dumps(meta, indent=2))
        digest = adapter_digest(folder)
        published = env.ADAPTERS_DIR / digest
        if not published.is_dir():
            with whole_folder(published) as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
    store.keep(digest)
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
        size=sum(path.stat().st_size for path in published.iterdir()),
    )
