"""How long an answer may be, where the request says so and where it does not. The model is a tiny Gemma."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.jobs.models import Job, State
from apps.jobs.services import job_create
from lyo import env
from tests.helpers import until
from tests.workers.training.conftest import tiny_folder  # noqa: F401 - a fixture
from workers.engine.loop import LocalEngine
from workers.models.load import LoadedModel, load
from workers.protocols import GenerateRequest, Handle, Outcome, Refused
from workers.tasks import generate as task

CONTEXT = 64
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> LoadedModel:  # noqa: F811
    return load(str(tiny_folder), tiny_folder.parent, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def running(tiny: LoadedModel) -> Iterator[LocalEngine]:
    engine = LocalEngine.over(tiny, kv_cache_mb=16, context_tokens=CONTEXT, batch_limit=2)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
def engine(tiny: LoadedModel, running: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> LocalEngine:
    """What the task asks."""
    monkeypatch.setattr(task, "runtime", lambda: (tiny, running, "cpu", "float32"))
    return running


def asked_for(content: str, max_tokens: int | None, overflow: str = "refuse") -> Job:
    return job_create(
        kind="chat",
        request={
            "messages": [{"role": "user", "content": content}],
            "overflow": overflow,
            "sampling": {"max_tokens": max_tokens, "temperature": 0, "stop": []},
        },
    )


def answered(content: str, max_tokens: int | None, overflow: str = "refuse") -> Job:
    job = asked_for(content, max_tokens, overflow)
    task.generate(str(job.id))
    job.refresh_from_db()
    return job


def usage(job: Job) -> tuple[int, int]:
    assert (job.state, job.error) == (State.SUCCEEDED, None)
    return job.result["usage"]["prompt_tokens"], job.result["usage"]["completion_tokens"]


def test_an_answer_without_a_limit_ends_at_the_default(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "DEFAULT_MAX_TOKENS", 7)
    job = answered("Tell a story.", None)
    assert usage(job)[1] == 7
    assert job.result["finish_reason"] == "length"


def test_an_answer_without_a_limit_ends_at_the_end_of_the_context(engine: LocalEngine) -> None:
    prompt, completion = usage(answered("Tell a story.", None))
    assert prompt + completion == CONTEXT
    assert env.DEFAULT_MAX_TOKENS > CONTEXT


@pytest.mark.parametrize(("content", "max_tokens"), [("word " * 100, None), ("word " * 40, 40)])
def test_what_cannot_fit_is_refused_in_openais_words(engine: LocalEngine, content: str, max_tokens: int | None) -> None:
    job = answered(content, max_tokens)
    assert (job.state, job.error["code"]) == (State.FAILED, "context_length_exceeded")
    assert f"maximum context length is {CONTEXT} tokens" in job.error["detail"]


@pytest.mark.parametrize(
    ("crashes", "lease_losses", "alone"), [(1, 0, False), (2, 0, True), (0, 2, True), (1, 1, True)]
)
def test_a_job_that_was_often_interrupted_runs_alone(
    engine: LocalEngine,
    tiny: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    crashes: int,
    lease_losses: int,
    alone: bool,
) -> None:
    asked: list[bool] = []

    class Watched:
        context_tokens = CONTEXT

        def submit(self, request: GenerateRequest, on_delta: Any) -> Handle[Outcome]:
            asked.append(request.alone)
            return engine.submit(request, on_delta)

    monkeypatch.setattr(task, "runtime", lambda: (tiny, Watched(), "cpu", "float32"))
    job = asked_for("Tell a story.", 2)
    Job.objects.filter(id=job.id).update(crashes=crashes, lease_losses=lease_losses)
    task.generate(str(job.id))
    assert asked == [alone]


def test_a_limit_that_a_remote_server_tells_late_is_kept(
    engine: LocalEngine, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request learns it: that one is fitted anew, not refused."""

    class Remote:
        context_tokens = 4096

        def submit(self, request: GenerateRequest, on_delta: Any) -> Handle[Outcome]:
            if self.context_tokens == 4096:
                self.context_tokens = CONTEXT
                raise Refused("context_length_exceeded", "the context holds 64 tokens")
            return engine.submit(request, on_delta)

    remote = Remote()
    monkeypatch.setattr(task, "runtime", lambda: (tiny, remote, "cpu", "float32"))
    prompt, completion = usage(answered("Tell a story.", None))
    assert prompt + completion == CONTEXT
    until(lambda: engine.stats().running == 0)
