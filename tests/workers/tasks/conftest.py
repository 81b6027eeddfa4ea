"""Tasks that ask an adapter: a tiny Gemma, and an adapter that has learnt an answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from apps.inference.services import adapter_add, route_promote
from lyo import env
from tests.apps.feed.conftest import ann, catalogue  # noqa: F401 - fixtures
from tests.workers.training.conftest import recipe
from workers.engine.loop import LocalEngine
from workers.engine.lora import adapter_digest
from workers.models.load import load
from workers.training.data import encode
from workers.training.run import Run


@contextmanager
def serving(tiny_folder: Path, place: Path, question: str, answer: str, steps: int) -> Iterator[SimpleNamespace]:
    """`model`, `engine`, and in the folder `place` the adapter with `digest`, which learned the answer for `steps`."""
    model = load(str(tiny_folder), tiny_folder.parent, device="cpu", dtype="float32")
    line = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    task = encode(model.tokenizer, [line], method="sft", max_length=128)
    learning = recipe(
        max_steps=steps,
        learning_rate=0.03,
        targets=["all-linear"],
        r=4,
        alpha=8,
        checkpoint_every=1000,
        max_length=128,
    )
    run = Run(model, learning, [task], place / "run")
    for _ in run:
        pass
    run.publish(place / "trained")
    digest = adapter_digest(place / "trained")
    (place / "trained").rename(place / digest)
    model = load(str(tiny_folder), tiny_folder.parent, device="cpu", dtype="float32")
    engine = LocalEngine.over(model, kv_cache_mb=64, context_tokens=1024, batch_limit=8, adapters_folder=place)
    engine.start()
    yield SimpleNamespace(model=model, engine=engine, digest=digest, place=place)
    engine.close()


def worker_has(served: Any, task: ModuleType, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """The task's worker has what is served, and adapters come from there."""
    backend = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": served.place}}
    settings.STORAGES = {**settings.STORAGES, "adapters": backend}
    monkeypatch.setattr(env, "ADAPTERS_DIR", served.place)
    monkeypatch.setattr(task, "runtime", lambda: (served.model, served.engine, "cpu", "float32"))


def promoted(served: Any, *, task: str) -> str:
    """The name of the adapter, now live."""
    adapter = adapter_add(suffix="own", base_model=env.MODEL, base_digest=served.model.digest, digest=served.digest)
    route_promote(task=task, adapter=adapter)
    return adapter.name
