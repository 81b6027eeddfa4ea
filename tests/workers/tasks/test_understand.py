"""The `understand` task: a live adapter says what a query wants; without it, or where it is late, the head does."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps.common.constants import Task
from apps.jobs.models import State
from apps.jobs.services import job_create
from apps.training.formats import QUERY_CHOICES, QUERY_JOINT, query_question
from tests.workers.tasks.conftest import promoted, serving, worker_has
from tests.workers.training.conftest import tiny_folder  # noqa: F401 - fixture
from workers.models.template import render
from workers.protocols import Refused, ScoreRequest
from workers.scoring.choices import choices_made
from workers.tasks import understand

pytestmark = pytest.mark.django_db(transaction=True)

QUERY = "how does photosynthesis work for beginners"
LEARNT = ("compare", "physics", "advanced")  # what nobody would say of it who has not learnt to


@pytest.fixture(scope="module")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # noqa: F811
    place = tmp_path_factory.mktemp("adapters")
    with serving(tiny_folder, place, query_question(QUERY), QUERY_JOINT.join(LEARNT), steps=40) as made:
        yield made


@pytest.fixture(autouse=True)
def _runtime(served: Any, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    worker_has(served, understand, monkeypatch, settings)
    monkeypatch.setattr(understand, "PATIENCE_S", 30.0)
    understand._topics = None


def understood(text: str = QUERY) -> tuple[str, str, str, str | None]:
    job = job_create(kind="understand", request={"text": text}, keep=False)
    understand.understand(str(job.id))
    job.refresh_from_db()
    assert job.state == State.SUCCEEDED, job.error
    return tuple(job.result[name] for name in ("intent", "subject", "level", "adapter"))  # type: ignore[return-value]


HEAD = ("explain", "", "beginner", None)


def test_the_live_adapter_says_what_a_query_wants(served: Any) -> None:
    assert understood() == HEAD
    name = promoted(served, task=Task.QUERY)
    assert understood() == (*LEARNT, name)


def test_the_head_does_where_the_adapter_is_late_or_cannot_be_had(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(served, task=Task.QUERY)
    with monkeypatch.context() as late:
        late.setattr(understand, "PATIENCE_S", 0.0)
        assert understood() == HEAD
    lost = SimpleNamespace(model=served.model, digest="f" * 16)
    promoted(lost, task=Task.QUERY)
    assert understood() == HEAD


def test_each_choice_is_the_one_whose_beginning_is_likeliest_after_those_made(served: Any) -> None:
    model, engine, adapter = served.model, served.engine, f"own@{served.digest}"
    encode = model.tokenizer.encode
    prompt = tuple(render(model.tokenizer, [{"role": "user", "content": query_question("something else")}]))
    lists = QUERY_CHOICES
    made = choices_made(engine, model.tokenizer, prompt, lists, joint=QUERY_JOINT, adapter=adapter, seconds=30)

    def likeliest(said: str, choices: Sequence[str]) -> str:
        beginnings = tuple((encode(f" {choice}" if said else choice)[0],) for choice in choices)
        request = ScoreRequest("own", (*prompt, *encode(said)), beginnings, adapter=adapter)
        scores = engine.score(request).wait(30).logprobs
        return max(zip(scores, choices, strict=True))[1]

    intent, subject, level = made
    assert intent == likeliest("", lists[0])
    assert subject == likeliest(f"{intent},", lists[1])
    assert level == likeliest(f"{intent}, {subject},", lists[2])


def test_choices_that_begin_alike_are_refused(served: Any) -> None:
    with pytest.raises(Refused, match="two of define, define it begin with the same token"):
        choices_made(
            served.engine, served.model.tokenizer, (2, 5), (("define", "define it"),), joint=", ", adapter="", seconds=1
        )
