"""Training runs: /v1/fine_tuning by the official client, and what workers record."""

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from uuid import UUID

import openai
import pytest

from apps.inference.models import Adapter
from apps.inference.services import adapter_add
from apps.jobs import services as jobs
from apps.jobs.models import Job, State
from apps.training.models import Run, RunState
from apps.training.serializers.runs import TUNING, RecipeSerializer, RunCreateSerializer
from apps.training.services import runs as services
from apps.users.models import User
from apps.users.services import token_create
from lyo import env
from tests.apps.training.conftest import chat
from workers.training.recipe import INTEGERS, NUMBERS, Recipe

pytestmark = pytest.mark.django_db(transaction=True)

METRICS = {"train_loss": 2.5, "seconds_left": 9.0}


@pytest.fixture
def clerk(transactional_db: None) -> User:
    return User.objects.create_superuser("grace", "grace@example.org")


@pytest.fixture
def ai(live: str, clerk: User) -> Iterator[openai.OpenAI]:
    key = token_create(user=clerk)[1]
    with openai.OpenAI(base_url=f"{live}/v1", api_key=key, max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def file(ai: openai.OpenAI) -> str:
    return upload(ai, 20)


def upload(ai: openai.OpenAI, count: int, first: int = 0) -> str:
    lines = [json.dumps(chat(f"What is {n} + 1?", str(n + 1))) for n in range(first, first + count)]
    return ai.files.create(file=("train.jsonl", BytesIO("\n".join(lines).encode())), purpose="fine-tune").id


def begin(ai: openai.OpenAI, file: str, **more: Any) -> Run:
    made = ai.fine_tuning.jobs.create(model=env.MODEL, training_file=file, **more)
    return Run.objects.get(id=UUID(hex=made.id.removeprefix("ftjob-")))


def claim(run: Run) -> jobs.Claim:
    run.refresh_from_db()
    found = jobs.job_claim(job_id=run.job_id, worker="train@here")
    assert found is not None
    return found


def state(run: Run) -> tuple[str, str]:
    run.refresh_from_db()
    return run.state, Job.objects.get(id=run.job_id).state


def test_a_run_is_made_of_openais_fields_and_our_own(ai: openai.OpenAI, file: str, clerk: User) -> None:
    hyperparameters: Any = {"batch_size": 4, "n_epochs": 2, "learning_rate_multiplier": 2}
    made = ai.fine_tuning.jobs.create(
        model=env.MODEL,
        training_file=file,
        suffix="Maths",
        seed=5,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        metadata={"team": "a"},
        extra_body={"lora": {"r": 8, "targets": ["all-linear"]}, "max_steps": 20, "checkpoint_every": 5},
    )
    assert (made.status, made.model, made.seed, made.training_file) == ("queued", env.MODEL, 5, file)
    assert made.metadata == {"team": "a"}
    assert made.method is not None
    assert made.method.type == "supervised"
    run = Run.objects.get()
    assert (run.suffix, run.user, run.public_id) == ("maths", clerk, made.id)
    assert run.recipe == {
        "method": "sft",
        "epochs": 2.0,
        "batch_size": 4,
        "learning_rate": 6e-4,
        "seed": 5,
        "r": 8,
        "targets": ["all-linear"],
        "max_steps": 20,
        "checkpoint_every": 5,
    }
    assert Recipe.of(run.recipe).targets == ("all-linear",)
    assert sum(run.version.statistics["examples"].values()) == 20
    assert (run.job.kind, run.job.queue, run.job.request) == ("train", "train", {"run": str(run.id)})
    assert [one.id for one in ai.fine_tuning.jobs.list().data] == [made.id]


def test_the_form_refuses_what_the_recipe_would() -> None:
    """The web cannot import the recipe: here both are held to the same names and bounds."""
    form = RunCreateSerializer().fields
    for name, field in RecipeSerializer().fields.items():
        if name in TUNING:
            assert repr(form[name]) == repr(field)
    hyperparameters = form["hyperparameters"].fields
    for name, of_recipe in (("n_epochs", "epochs"), ("batch_size", "batch_size"), ("beta", "beta")):
        bounds = {**INTEGERS, **NUMBERS}[of_recipe]
        assert (hyperparameters[name].min_value, hyperparameters[name].max_value) == bounds


@pytest.mark.parametrize("where", ["hyperparameters", "method"])
def test_auto_is_the_default_wherever_openai_has_it(ai: openai.OpenAI, file: str, where: str) -> None:
    auto: Any = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    asked: dict[str, Any] = {
        "hyperparameters": auto,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {**auto, "beta": "auto"}}},
    }
    run = begin(ai, file, **{where: asked[where]})
    assert run.recipe == {"method": "sft"}
    made = ai.fine_tuning.jobs.retrieve(run.public_id)
    assert (made.hyperparameters.n_epochs, made.hyperparameters.batch_size) == ("auto", "auto")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", 0, "Auto", "", None, [], {}, "1e999"])
@pytest.mark.parametrize("name", ["n_epochs", "batch_size", "learning_rate_multiplier"])
def test_what_is_no_number_and_not_auto_is_refused(ai: openai.OpenAI, file: str, name: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        begin(ai, file, hyperparameters={name: value})
    assert refusal.value.param == f"hyperparameters.{name}"
    assert not Run.objects.exists()


@pytest.mark.parametrize(
    ("body", "param", "problem"),
    [
        ({"model": "gpt-5"}, "model", "Only gemma-3-270m can be trained here"),
        ({"training_file": "file-0"}, "training_file", "There is no file"),
        ({"max_steps": 0}, "max_steps", "greater than or equal to 1"),
        ({"lora": {"r": 0}}, "lora.r", "greater than or equal to 1"),
        ({"lora": {"rank": 4}}, "lora.rank", "Unknown field"),
        ({"learning_rate": 1}, "learning_rate", "Unknown field"),
        ({"suffix": "a b"}, "suffix", "does not match"),
        ({"accumulation": 9}, "accumulation", "At most 8"),
        ({"method": {"type": "reinforcement"}}, "method.type", "not a valid choice"),
        ({"method": {"type": "dpo"}}, None, "No approved example matches"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_the_field(
    ai: openai.OpenAI, file: str, body: dict[str, Any], param: str | None, problem: str
) -> None:
    asked = {"model": env.MODEL, "training_file": file, **body}
    with pytest.raises(openai.BadRequestError, match=problem) as refusal:
        ai.post("/fine_tuning/jobs", body=asked, cast_to=object)
    assert refusal.value.param == param
    assert (Run.objects.count(), Job.objects.count()) == (0, 0)


def test_a_mixture_draws_from_files_by_weight(ai: openai.OpenAI, file: str) -> None:
    other = upload(ai, 10, first=100)
    mixture = [{"file": file, "weight": 3}, {"file": other}]
    made = ai.post("/fine_tuning/jobs", body={"model": env.MODEL, "mixture": mixture}, cast_to=object)
    assert made["mixture"] == [{"file": file, "weight": 3.0}, {"file": other, "weight": 1.0}]  # type: ignore[index]
    assert sum(Run.objects.get().version.statistics["examples"].values()) == 30


def test_a_repeat_with_the_same_key_is_the_same_run(ai: openai.OpenAI, file: str) -> None:
    headers = {"Idempotency-Key": "again"}
    first, second = (begin(ai, file, extra_headers=headers) for _ in range(2))
    assert first == second
    with pytest.raises(openai.ConflictError, match="another request"):
        begin(ai, file, seed=9, extra_headers=headers)


def test_steps_checkpoints_and_the_end_are_told(ai: openai.OpenAI, file: str) -> None:
    run = begin(ai, file, suffix="maths")
    held = claim(run)
    services.run_begin(claim=held)
    for step in (1, 2, 3):
        services.run_record_step(claim=held, step=step, steps=4, metrics={**METRICS, "train_loss": 3.0 - step})
    adapter = adapter_add(suffix="maths-step-2", digest="0" * 16, base_model=env.MODEL, base_digest="b")
    services.run_record_checkpoint(claim=held, step=2, metrics={"step": 2, "train_loss": 1.0}, adapter=adapter)
    services.run_record_step(claim=held, step=3, steps=4, metrics={**METRICS, "train_loss": 0.5})  # taken again
    events = ai.fine_tuning.jobs.list_events(run.public_id, limit=100).data
    data: list[Any] = [event.data for event in events if event.type == "metrics"]
    assert sorted(one["train_loss"] for one in data) == [0.5, 1.0, 2.0]
    checkpoint = ai.fine_tuning.jobs.checkpoints.list(run.public_id).data[0]
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (2, 1.0)
    assert checkpoint.fine_tuned_model_checkpoint == f"ft:{env.MODEL}:maths-step-2@{'0' * 16}"
    assert ai.fine_tuning.jobs.retrieve(run.public_id).to_dict()["step"] == 3

    tuned = adapter_add(suffix="maths", digest="1" * 16, base_model=env.MODEL, base_digest="b")
    jobs.job_finish(claim=held, state=State.SUCCEEDED, result={"adapter": tuned.name})
    ended = ai.fine_tuning.jobs.retrieve(run.public_id)
    assert (ended.status, ended.fine_tuned_model) == ("succeeded", tuned.name)
    assert ended.finished_at is not None


def test_pages_of_events_have_each_once(ai: openai.OpenAI, file: str) -> None:
    run = begin(ai, file)
    held = claim(run)
    services.run_begin(claim=held)
    for number in range(7):
        services.run_say(claim=held, message=f"event {number}")
    found = [event.message for event in ai.fine_tuning.jobs.list_events(run.public_id, limit=3)]
    assert found == [*(f"event {number}" for number in range(6, -1, -1)), "Created"]


def test_pause_resume_and_cancel(ai: openai.OpenAI, file: str) -> None:
    run = begin(ai, file)
    held = claim(run)
    services.run_begin(claim=held)
    assert ai.fine_tuning.jobs.pause(run.public_id).status == "paused"
    assert state(run) == ("paused", "cancelled")
    with pytest.raises(jobs.LeaseLost):
        services.run_record_step(claim=held, step=1, steps=4, metrics=METRICS)
    ai.fine_tuning.jobs.resume(run.public_id)
    assert state(run) == ("queued", "queued")
    services.run_begin(claim=claim(run))
    assert state(run) == ("running", "running")
    ai.fine_tuning.jobs.cancel(run.public_id)
    assert state(run) == ("cancelled", "cancelled")
    with pytest.raises(openai.ConflictError, match="A run that is cancelled cannot be cancelled"):
        ai.fine_tuning.jobs.cancel(run.public_id)


def test_a_failed_run_says_why_and_can_go_on(ai: openai.OpenAI, file: str) -> None:
    run = begin(ai, file)
    held = claim(run)
    services.run_begin(claim=held)
    error = {"code": "disk_full", "detail": "the disk is full: make room"}
    jobs.job_finish(claim=held, state=State.FAILED, error=error)
    ended = ai.fine_tuning.jobs.retrieve(run.public_id)
    assert ended.error is not None
    assert (ended.status, ended.error.code, ended.error.message) == ("failed", "disk_full", error["detail"])
    ai.fine_tuning.jobs.resume(run.public_id)
    assert state(run) == ("queued", "queued")
    assert ai.fine_tuning.jobs.retrieve(run.public_id).error is None


def test_a_job_cancelled_by_itself_ends_its_run(ai: openai.OpenAI, file: str) -> None:
    run = begin(ai, file)
    jobs.job_cancel(job=run.job)
    assert state(run) == ("cancelled", "cancelled")


def test_progress_earns_new_attempts(ai: openai.OpenAI, file: str) -> None:
    run = begin(ai, file)
    for _ in range(env.JOB_ATTEMPTS - 1):
        jobs.job_hand_back(claim=claim(run), crashed=True)
    held = claim(run)
    services.run_begin(claim=held)
    services.run_record_checkpoint(claim=held, step=5, metrics={}, adapter=None)
    Job.objects.filter(id=run.job_id).update(lease_expires_at="2000-01-01T00:00:00Z", worker_died=True)
    jobs.job_requeue_expired()
    assert state(run) == (RunState.RUNNING, State.QUEUED)


def test_learners_may_not_train(live: str, transactional_db: None) -> None:
    learner = User.objects.create_user("ann", "ann@example.org")
    with openai.OpenAI(base_url=f"{live}/v1", api_key=token_create(user=learner)[1], max_retries=0) as ai:
        for call in (ai.fine_tuning.jobs.list, lambda: ai.fine_tuning.jobs.retrieve("ftjob-0")):
            with pytest.raises(openai.PermissionDeniedError):
                call()
    assert Adapter.objects.count() == 0
