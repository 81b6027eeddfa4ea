"""An evaluation by a real engine: adapter and base model of a tiny Gemma side by side."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from tests.workers.training.conftest import recipe
from workers.engine.loop import LocalEngine
from workers.engine.lora import adapter_digest
from workers.models.load import LoadedModel, load
from workers.protocols import Refused
from workers.training.data import encode
from workers.training.evaluation import evaluate
from workers.training.measures import Item
from workers.training.run import Run

RECORDS = [
    {
        "messages": [
            {"role": "user", "content": f"What comes after {number}?"},
            {"role": "assistant", "content": "It is nine."},
        ]
    }
    for number in range(8)
]
Served = tuple[LoadedModel, LocalEngine, str]

ITEMS = [Item.of({**record, "answer": "nine"}) for record in RECORDS]


@pytest.fixture(scope="module")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An engine with an adapter that has learnt the reference replies."""
    place = tmp_path_factory.mktemp("adapters")

    def loaded() -> LoadedModel:
        return load(str(tiny_folder), tiny_folder.parent, device="cpu", dtype="float32")

    learner = loaded()
    task = encode(learner.tokenizer, RECORDS, method="sft", max_length=64)
    learning = recipe(max_steps=60, learning_rate=0.03, targets=["all-linear"], r=16, alpha=32, checkpoint_every=1000)
    run = Run(learner, learning, [task], tmp_path_factory.mktemp("run"))
    for _ in run:
        pass
    run.publish(place / "trained")
    digest = adapter_digest(place / "trained")
    (place / "trained").rename(place / digest)
    model = loaded()
    engine = LocalEngine.over(model, kv_cache_mb=64, context_tokens=256, batch_limit=8, adapters_folder=place)
    engine.start()
    yield model, engine, f"tiny@{digest}"
    engine.close()


def test_what_was_learnt_is_measured_beside_the_base_model(served: Served) -> None:
    model, engine, adapter = served
    told: list[tuple[int, int]] = []
    made = evaluate(
        engine,
        model.tokenizer,
        ITEMS,
        {"candidate": adapter, "base": None},
        max_tokens=16,
        progress=lambda done, total: told.append((done, total)),
    )
    assert (made.items, made.too_long) == (8, 0)
    assert told == [(done, 16) for done in range(1, 17)]
    nll = made.measures["nll"]
    assert nll["candidate"]["mean"] < nll["base"]["mean"] - 1
    assert nll["difference_to_base"]["mean"] == pytest.approx(nll["candidate"]["mean"] - nll["base"]["mean"])
    assert nll["difference_to_base"]["high"] < 0
    assert {name: made.measures[name]["base"]["mean"] for name in ("exact_match", "turn_end")} == {
        "exact_match": 0.0,
        "turn_end": 0.0,
    }


def test_the_likelihood_is_that_of_training(served: Served, tiny_folder: Path) -> None:
    """The same template and the same tokens: the base model's NLL is the loss of a run's first step."""
    model, engine, _ = served
    made = evaluate(engine, model.tokenizer, ITEMS, {"base": None}, max_tokens=4)
    fresh = load(str(tiny_folder), tiny_folder.parent, device="cpu", dtype="float32")
    task = encode(fresh.tokenizer, RECORDS, method="sft", max_length=64)
    run = Run(fresh, recipe(batch_size=8, max_steps=1, dropout=0.0), [task], tiny_folder.parent / "first")
    assert made.measures["nll"]["base"]["mean"] == pytest.approx(next(iter(run)).loss, rel=1e-4)


def test_what_is_too_long_is_counted_and_a_stop_ends_it(served: Served) -> None:
    model, engine, _ = served
    long = Item.of({"messages": [{"role": "user", "content": "so " * 300}, {"role": "assistant", "content": "Yes."}]})
    made = evaluate(engine, model.tokenizer, [*ITEMS, long], {"base": None}, max_tokens=4)
    assert (made.items, made.too_long) == (8, 1)
    with pytest.raises(Refused, match="no item to judge by"):
        evaluate(engine, model.tokenizer, [long], {"base": None})
    stopped = Event()
    stopped.set()
    with pytest.raises(Refused, match="was stopped"):
        evaluate(engine, model.tokenizer, ITEMS, {"base": None}, max_tokens=4, stopped=stopped)
