"""The `evaluate` and `compare` tasks, executed with a tiny Gemma that serves."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps.inference.models import Adapter
from apps.inference.services import adapter_add, route_promote
from apps.jobs import services as jobs
from apps.jobs.models import Job, State
from apps.training.models import Comparison, Evaluation, Gate
from apps.training.services.comparisons import comparison_create
from apps.training.services.data import evaluation_set_register
from apps.training.services.evaluations import evaluation_create
from apps.users.models import User
from lyo import env
from tests.workers.training.conftest import recipe, tiny_folder, words  # noqa: F401 - fixtures
from workers.engine.loop import LocalEngine
from workers.engine.lora import adapter_digest
from workers.models.load import LoadedModel, load
from workers.models.template import render
from workers.protocols import GenerateRequest, Refused, Sampling
from workers.tasks import compare, evaluate
from workers.training.data import encode
from workers.training.outside import Outside
from workers.training.run import Run

pytestmark = pytest.mark.django_db(transaction=True)

LINES = [
    b'{"messages": [{"role": "user", "content": "How much is %d?"}, {"role": "assistant", "content": "It is nine."}], '
    b'"answer": "nine"}' % number
    for number in range(4)
]


@pytest.fixture(scope="module")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # noqa: F811
    """Model, engine, and the digest of an adapter to which the references are likelier than to the base model."""
    place = tmp_path_factory.mktemp("adapters")

    def loaded() -> LoadedModel:
        return load(str(tiny_folder), tiny_folder.parent, device="cpu", dtype="float32")

    learner = loaded()
    task = encode(learner.tokenizer, [json.loads(line) for line in LINES], method="sft", max_length=64)
    learning = recipe(max_steps=60, learning_rate=0.03, targets=["all-linear"], r=8, alpha=16, checkpoint_every=1000)
    run = Run(learner, learning, [task], tmp_path_factory.mktemp("run"))
    for _ in run:
        pass
    run.publish(place / "trained")
    digest = adapter_digest(place / "trained")
    (place / "trained").rename(place / digest)
    model = loaded()
    engine = LocalEngine.over(model, kv_cache_mb=64, context_tokens=1024, batch_limit=4, adapters_folder=place)
    engine.start()
    yield SimpleNamespace(model=model, engine=engine, digest=digest, place=place)
    engine.close()


@pytest.fixture(autouse=True)
def _runtime(served: Any, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    backend = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": served.place}}
    settings.STORAGES = {**settings.STORAGES, "adapters": backend}
    monkeypatch.setattr(env, "ADAPTERS_DIR", served.place)
    monkeypatch.setattr(compare, "MAX_TOKENS", 64)  # the tiny model's context is short
    for module in (evaluate, compare):
        monkeypatch.setattr(module, "runtime", lambda: (served.model, served.engine, "cpu", "float32"))


def trained(served: Any, **fields: Any) -> Adapter:
    return adapter_add(
        suffix="t", base_model=env.MODEL, base_digest=served.model.digest, **{"digest": served.digest, **fields}
    )


def problems() -> Any:
    return evaluation_set_register(name="tutoring-nine", task="tutoring", stream=BytesIO(b"\n".join(LINES)))


def evaluated(adapter: Adapter, **fields: Any) -> tuple[Evaluation, Job]:
    """Execute an evaluation on this thread, as its worker would."""
    evaluation, job = evaluation_create(user=None, adapter=adapter, task="tutoring", **fields)
    evaluate.evaluate(str(job.id))
    evaluation.refresh_from_db()
    job.refresh_from_db()
    return evaluation, job


def test_an_adapter_is_judged_beside_the_live_one_and_the_base_model(served: Any) -> None:
    problems()
    Gate.objects.all().delete()
    Gate.objects.create(task="tutoring", measure="nll", kind="better_than_base", value=0)
    Gate.objects.create(task="tutoring", measure="turn_end", kind="bound", value=0.9)
    adapter = trained(served)
    route_promote(task="tutoring", adapter=adapter)
    evaluation, job = evaluated(adapter, limit=3)
    assert job.state == State.SUCCEEDED, job.error
    report = evaluation.report
    assert report["adapters"] == {"candidate": adapter.name, "live": adapter.name, "base": None}
    assert (report["model_digest"], report["items"], report["too_long"]) == (served.model.digest, 3, 0)
    assert report["sets"] == {"tutoring-nine": {"kind": "evaluation set", "version": "1", "items": 3}}
    assert (evaluation.replies_done, evaluation.replies_total) == (6, 6)  # the live one is the candidate
    nll = report["measures"]["nll"]
    assert (nll["candidate"], nll["difference_to_live"]["mean"]) == (nll["live"], 0.0)
    assert nll["difference_to_base"]["high"] < -1
    assert (evaluation.passed, job.result["passed"], evaluation.failures) == (False, False, job.result["failures"])
    assert [failure.partition(" ")[0] for failure in evaluation.failures] == ["turn_end"]  # this model ends none


def test_without_a_live_adapter_the_base_model_is_compared_with(served: Any) -> None:
    problems()
    evaluation, _ = evaluated(trained(served))
    nll = evaluation.report["measures"]["nll"]
    assert (nll["live"], nll["difference_to_live"]) == (None, None)
    assert nll["difference_to_base"]["high"] < 0


def test_an_evaluation_without_problems_says_so(served: Any) -> None:
    evaluation, job = evaluated(trained(served))
    assert (job.state, job.error["code"], evaluation.passed) == (State.FAILED, "no_items", None)


def test_an_adapter_that_is_not_in_the_store_is_named(served: Any) -> None:
    problems()
    _, job = evaluated(trained(served, digest="f" * 16))
    assert (job.state, job.error["code"]) == (State.FAILED, "adapter_not_found")
    assert "f" * 16 in job.error["detail"]


def test_a_cancelled_evaluation_ends(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problems()
    evaluation, job = evaluation_create(user=None, adapter=trained(served), task="tutoring")

    def cancelled(*_: Any) -> Any:
        jobs.job_cancel(job=Job.objects.get(id=job.id))
        return [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]}]

    monkeypatch.setattr(evaluate, "evaluation_records", lambda _: ({}, cancelled()))
    evaluate.evaluate(str(job.id))
    job.refresh_from_db()
    evaluation.refresh_from_db()
    assert (job.state, evaluation.report) == (State.CANCELLED, None)


# --- comparisons ---


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An outside model that says "Nine!", and a judge who prefers what does not. What was asked, in order."""
    asked: list[str] = []

    def reply(self: Outside, messages: Any, max_tokens: int, response_format: Any = None) -> str:
        asked.append(self.model)
        if self.model == "down":
            raise Refused("outside_unavailable", "down")
        if self.model == "referee":
            return (
                '{"verdict": "B"}' if json.loads(messages[1]["content"])["reply A"] == "Nine!" else '{"verdict": "A"}'
            )
        return "Nine!"

    monkeypatch.setattr(Outside, "reply", reply)
    for name, value in {"COMPARE_MODEL": "large", "JUDGE_MODEL": "referee"}.items():
        monkeypatch.setattr(env, name, value)
        monkeypatch.setattr(env, name.replace("MODEL", "URL"), "http://127.0.0.1:1/v1")
    return asked


def compared(adapter: Adapter | None) -> tuple[Comparison, Job]:
    user = User.objects.create_user("grace", "grace@example.org")
    return comparison_create(
        user=user, task="tutoring", judge="model", count=3, adapter=adapter, evaluation_set=problems()
    )


def test_replies_are_judged_in_both_orders(served: Any, outside: list[str]) -> None:
    comparison, job = compared(trained(served))
    compare.compare(str(job.id))
    job.refresh_from_db()
    assert job.state == State.SUCCEEDED, job.error
    for pairing in comparison.pairings.all():
        prompt = tuple(render(served.model.tokenizer, pairing.messages))
        request = GenerateRequest("own", prompt, Sampling(64, temperature=0), adapter=f"t@{served.digest}")
        own = served.engine.submit(request, lambda _: None).wait(60).text
        assert (pairing.ours, pairing.theirs, pairing.verdict) == (own, "Nine!", "ours")
    assert (job.result["model"]["win_rate"], job.result["people"], job.result["unjudged"]) == (1.0, None, 0)
    assert (outside.count("large"), outside.count("referee")) == (3, 6)


def test_what_was_answered_is_not_asked_again(served: Any, outside: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    comparison, job = compared(trained(served))
    first = comparison.pairings.get(position=0)
    comparison.pairings.filter(id=first.id).update(
        ours="a", theirs="b", verdict="theirs", answered_at=comparison.created_at
    )
    compare.compare(str(job.id))
    job.refresh_from_db()
    assert (job.result["model"]["wins"], job.result["model"]["losses"], outside.count("large")) == (2, 1, 2)


def test_a_prompt_that_is_too_long_is_counted_and_left_out(served: Any, outside: list[str]) -> None:
    comparison, job = compared(trained(served))
    comparison.pairings.filter(position=1).update(messages=[{"role": "user", "content": "so " * 2000}])
    compare.compare(str(job.id))
    job.refresh_from_db()
    assert job.state == State.SUCCEEDED, job.error
    assert (job.result["model"]["n"], job.result["unjudged"], job.result["too_long"]) == (2, 0, 1)
    assert list(comparison.pairings.filter(answered_at=None).values_list("position", flat=True)) == [1]
    assert outside.count("large") == 2


def test_a_comparison_of_which_no_prompt_fits_says_so(served: Any, outside: list[str]) -> None:
    comparison, job = compared(None)
    comparison.pairings.update(messages=[{"role": "user", "content": "so " * 2000}])
    compare.compare(str(job.id))
    job.refresh_from_db()
    assert (job.state, job.error["code"], outside) == (State.FAILED, "no_prompts", [])


def test_an_outside_model_that_is_away_fails_the_comparison(
    served: Any, outside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "COMPARE_MODEL", "down")
    _, job = compared(None)
    compare.compare(str(job.id))
    job.refresh_from_db()
    assert (job.state, job.error["code"]) == (State.FAILED, "outside_unavailable")
