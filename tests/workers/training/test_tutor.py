"""The shipped tutor, as a new installation has it: small, complete, measured, and able to end its turn."""

import json
import shutil
from collections.abc import Iterator

import pytest

from tests.workers.conftest import MODELS_DIR
from workers.engine.loop import LocalEngine
from workers.engine.lora import CONFIG, META, WEIGHTS, adapter_digest
from workers.models.load import LoadedModel, load
from workers.models.template import render
from workers.protocols import GenerateRequest, Outcome, Sampling
from workers.training.tutor import SHIPPED

META_FACTS = json.loads((SHIPPED / META).read_text())
SYSTEM = "You are Lyo, a patient tutor. The learner is a beginner: avoid jargon, use everyday examples."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoadedModel, LocalEngine]]:
    adapters = tmp_path_factory.mktemp("adapters")
    shutil.copytree(SHIPPED, adapters / adapter_digest(SHIPPED))
    model = load("gemma-3-270m", MODELS_DIR, device="cpu", dtype="float32")
    engine = LocalEngine.over(model, kv_cache_mb=256, context_tokens=1024, batch_limit=16, adapters_folder=adapters)
    engine.start()
    yield model, engine
    engine.close()


def ask(served: tuple[LoadedModel, LocalEngine], questions: list[str]) -> list[Outcome]:
    model, engine = served
    greedy = Sampling(max_tokens=400, temperature=0)
    adapter = f"tutor@{adapter_digest(SHIPPED)}"
    handles = []
    for question in questions:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        prompt = tuple(render(model.tokenizer, messages))
        request = GenerateRequest(id=question, prompt=prompt, sampling=greedy, adapter=adapter)
        handles.append(engine.submit(request, lambda delta: None))
    return [handle.wait(120) for handle in handles]


def test_the_folder_is_complete_and_small() -> None:
    files = {file.name: file.stat().st_size for file in SHIPPED.iterdir()}
    assert set(files) == {CONFIG, WEIGHTS, META, "README.md", "NOTICE"}
    assert sum(files.values()) <= 8_000_000
    assert adapter_digest(SHIPPED) in (SHIPPED / "README.md").read_text()
    assert "Gemma Terms of Use" in (SHIPPED / "NOTICE").read_text()


def test_it_says_of_which_weights_it_is_an_adapter(served: tuple[LoadedModel, LocalEngine]) -> None:
    assert META_FACTS["base_digest"] == served[0].digest


def test_it_was_found_to_be_what_is_promised() -> None:
    found = {
        name: {measure: figures["adapter"]["mean"] for measure, figures in measures.items()}
        for name, measures in META_FACTS["evaluation"].items()
    }
    assert META_FACTS["evaluation"]["word-problems"]["nll"]["adapter"]["n"] == 300
    assert found["word-problems"]["nll"] <= 1.0
    assert found["word-problems-asked-of-the-tutor"]["turn_end"] >= 0.97
    assert all(found[name]["turn_end"] >= 0.98 for name in ("arithmetic", "hints", "word-problem-hints"))
    assert found["word-problem-hints"]["answer_leak"] < 0.1
    assert found["hints"]["answer_leak"] < 0.1


def test_learners_get_answers_that_end(served: tuple[LoadedModel, LocalEngine]) -> None:
    questions = [
        "Why is the sum of two even numbers even?",
        "What is photosynthesis?",
        "What does a for loop do in Python?",
        "Make me a plan to learn fractions in two weeks.",
        "Tom has 4 boxes with 6 pens each. How many pens does he have?",
        "What is 2 + 3?",
    ]
    answers = ask(served, questions)
    assert [answer.finish_reason for answer in answers] == ["stop"] * len(questions)
    assert all(answer.text.strip() for answer in answers)
    assert "24" in answers[4].text
    assert "5" in answers[5].text
