"""The `train` task: a run's rows become an adapter, through kills, pauses and what goes wrong."""

import errno
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from apps.inference.models import Adapter
from apps.jobs import services as jobs
from apps.jobs.models import Job, State
from apps.training.models import DataSetVersion, Example, Run, RunCheckpoint, RunEvent
from apps.training.services import data
from apps.training.services import runs as services
from apps.training.tasks import collect, renew
from apps.tutor.models import Conversation, Message
from apps.users.models import User
from lyo import env
from tests.apps.training.conftest import LONG_AGO
from tests.workers.training.conftest import tiny_folder, words  # noqa: F401 - fixtures
from workers.engine.lora import adapter_digest
from workers.tasks import train as tasks
from workers.training.run import Metrics
from workers.training.run import Run as TrainingRun

pytestmark = pytest.mark.django_db(transaction=True)

RECIPE: dict[str, Any] = {
    "dtype": "float32",
    "r": 4,
    "alpha": 8,
    "batch_size": 4,
    "max_steps": 6,
    "learning_rate": 0.01,
    "checkpoint_every": 2,
    "max_length": 64,
}


@pytest.fixture(autouse=True)
def _tiny(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    settings = {
        "MODEL": str(tiny_folder),
        "MODELS_DIR": tiny_folder.parent,
        "DEVICE": "cpu",
        "ADAPTERS_DIR": tmp_path / "adapters",
        "RUNS_DIR": tmp_path / "runs",
    }
    for name, value in settings.items():
        monkeypatch.setattr(env, name, value)


def version(*long: str) -> DataSetVersion:
    for number, answer in enumerate([*(f"It is {n}." for n in range(12)), *long]):
        record = {
            "messages": [
                {"role": "user", "content": f"How much is {number}?"},
                {"role": "assistant", "content": answer},
            ]
        }
        fields = {"task": "tutoring", "state": "approved", "source": "file"}
        data.example_new(format_="chat", record=record, **fields).save()
    return data.version_build(user=None, method="supervised", validation_share=0)[0]


def begun(**changes: Any) -> Run:
    recipe = {**RECIPE, **changes.pop("recipe", {})}
    made = changes.pop("version", None) or version()
    return services.run_create(version=made, recipe=recipe, suffix="tiny", task="tutoring", **changes)


def work(run: Run) -> Job:
    """Execute the run's job on this thread, as its worker would."""
    run.refresh_from_db()
    tasks.train(str(run.job_id))
    run.refresh_from_db()
    return Job.objects.get(id=run.job_id)


def messages(run: Run) -> list[str]:
    return list(RunEvent.objects.filter(run=run, step=None).order_by("id").values_list("message", flat=True))


def losses(run: Run) -> list[tuple[int, float]]:
    rows = RunEvent.objects.filter(run=run, step__isnull=False).order_by("step")
    return [(row.step, row.data["train_loss"]) for row in rows if row.step]


def after(step: int, monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Have `do` happen after a step, before it is recorded."""
    whole = TrainingRun.__iter__

    def disturbed(self: TrainingRun) -> Any:
        for metrics in whole(self):
            if metrics.step == step:
                do()
            yield metrics

    monkeypatch.setattr(TrainingRun, "__iter__", disturbed)


def test_a_run_becomes_an_adapter_with_its_facts() -> None:
    run = begun()
    job = work(run)
    assert (run.state, job.state, run.step, run.steps) == ("succeeded", State.SUCCEEDED, 6, 6)
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4, 5, 6]
    assert losses(run)[-1][1] < losses(run)[0][1]
    adapter = run.adapter
    assert adapter is not None
    assert job.result == {"adapter": adapter.name}
    folder = env.ADAPTERS_DIR / adapter.digest
    assert adapter_digest(folder) == adapter.digest
    assert adapter.name == f"ft:tiny:tiny@{adapter.digest}"
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["dataset_version"] == adapter.dataset_version == run.version.digest
    assert (adapter.base_digest, adapter.recipe["r"], adapter.metrics["step"]) == (meta["base_digest"], 4, 6)
    steps = RunCheckpoint.objects.filter(run=run).order_by("step").values_list("step", "adapter__name")
    assert [step for step, _ in steps] == [2, 4]
    assert all((env.ADAPTERS_DIR / str(name).rpartition("@")[2]).is_dir() for _, name in steps)
    assert messages(run)[-1] == f"The run has succeeded: {adapter.name}"


def test_a_lost_worker_s_run_goes_on_and_ends_as_the_undisturbed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = version()
    undisturbed, run = begun(version=made), begun(version=made)
    work(undisturbed)

    class Killed(BaseException):
        """Nothing of ours catches it, as nothing catches SIGKILL."""

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        after(5, patch, kill)
        work(run)
    Job.objects.filter(id=run.job_id).update(lease_expires_at="2000-01-01T00:00:00Z", worker_died=True)
    jobs.job_requeue_expired()
    work(run)
    assert run.state == "succeeded"
    assert "Resumed from the checkpoint at step 4: 16 weights are trained in 6 steps" in messages(run)
    assert losses(run) == losses(undisturbed)
    assert run.adapter == undisturbed.adapter
    assert Adapter.objects.count() == 3  # of steps 2 and 4, and the result


def test_a_paused_run_keeps_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun()
    with monkeypatch.context() as patch:
        after(3, patch, lambda: services.run_pause(run=run))
        work(run)
    assert (run.state, [step for step, _ in losses(run)]) == ("paused", [1, 2])
    services.run_resume(run=run)
    work(run)
    assert (run.state, len(losses(run))) == ("succeeded", 6)


def test_a_cancelled_run_s_checkpoints_go_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun()
    with monkeypatch.context() as patch:
        after(3, patch, lambda: services.run_cancel(run=run))
        work(run)
    assert run.state == "cancelled"
    assert (env.RUNS_DIR / str(run.id) / "checkpoints").is_dir()
    work(begun(version=run.version))
    assert not (env.RUNS_DIR / str(run.id) / "checkpoints").exists()


@pytest.mark.parametrize(
    ("recipe", "code", "advice"),
    [
        ({"targets": ["x_proj"]}, "unknown_target", "matches no module"),
        ({"max_length": 8}, "no_examples", "raise max_length"),
    ],
)
def test_what_cannot_be_trained_fails_with_advice(recipe: dict[str, Any], code: str, advice: str) -> None:
    run = begun(recipe=recipe)
    assert work(run).state == State.FAILED
    assert (run.state, run.error["code"]) == ("failed", code)
    assert advice in run.error["detail"]


def test_a_full_disk_fails_the_run_which_goes_on_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun()

    def full(self: TrainingRun) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("workers.training.checkpoint.Checkpoints.save", lambda *args: full(args[0]))
        work(run)
    assert (run.state, run.error["code"]) == ("failed", "disk_full")
    assert "make room" in run.error["detail"]
    services.run_resume(run=run)
    work(run)
    assert run.state == "succeeded"


def test_what_is_too_long_is_counted_and_left_out() -> None:
    run = begun(version=version("long " * 80))
    work(run)
    assert "train: 1 of 13 examples are longer than 64 tokens, and left out" in messages(run)
    assert run.state == "succeeded"


def test_full_tuning_makes_a_model_and_no_adapter() -> None:
    run = begun(recipe={"method": "full", "max_steps": 2})
    job = work(run)
    assert (run.state, run.adapter) == ("succeeded", None)
    assert (Path(job.result["model_folder"]) / "model.safetensors").is_file()


def test_erased_data_are_not_trained_on() -> None:
    run = begun()
    data.examples_delete(Example.objects.filter(hash__in=[Example.objects.values_list("hash", flat=True)[0]]))
    assert work(run).state == State.FAILED
    assert run.error["code"] == "version_erased"


def facts(**changes: Any) -> Metrics:
    return Metrics(1, 2, 0.5, 0.1, 1.0, 10, 5.0, 2.0, 3.0, **changes)


def test_metrics_are_told_without_what_there_is_none_of() -> None:
    assert "validation_loss" not in tasks.facts_of(facts())
    assert tasks.facts_of(facts(validation_loss=0.25))["validation_loss"] == 0.25
    assert tasks.facts_of(facts())["train_loss"] == 0.5


def test_who_leaves_takes_her_words_along_and_the_adapter_is_learnt_again_without_them() -> None:
    """From the learner's answer to the adapter, and from her leaving to the next adapter; real services and tasks."""
    said = "Because xylophones scatter blue light."
    ann = User.objects.create_user(
        "ann", "ann@example.org", "pass-9-word", birth_year=1990, training_consented_at=LONG_AGO - timedelta(days=1)
    )
    talk = Conversation.objects.create(user=ann, subject="physics")
    for position, (role, content) in enumerate((("user", "Why is the sky blue?"), ("assistant", said))):
        message = Message.objects.create(
            conversation=talk, position=position, role=role, content=content, finish_reason="stop"
        )
        Message.objects.filter(id=message.id).update(created_at=LONG_AGO, updated_at=LONG_AGO)
    collect()
    data.example_review(example=Example.objects.get(learner=ann), reviewer=ann, decision="approve")
    first = begun(recipe={"max_length": 256})
    work(first)
    assert first.adapter is not None
    assert "xylophones" in stored_text()

    client = APIClient()
    client.force_authenticate(ann)
    assert client.delete("/api/v1/me", {"password": "pass-9-word"}, format="json").status_code == 204
    renew()
    assert "xylophones" not in stored_text()
    successor = Run.objects.get(replaces=first)
    assert work(successor).state == State.SUCCEEDED
    assert successor.adapter is not None
    marked = {adapter.digest: adapter.erased_at is not None for adapter in Adapter.objects.all()}
    assert (marked[first.adapter.digest], marked[successor.adapter.digest]) == (True, False)
    meta = json.loads((env.ADAPTERS_DIR / successor.adapter.digest / "meta.json").read_text())
    assert meta["dataset_version"] == successor.version.digest != first.version.digest
    assert successor.version.members.count() == first.version.members.count() - 1


def stored_text() -> str:
    """All that any table has, as text."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        tables = [table for (table,) in cursor.fetchall()]
        rows = []
        for table in tables:
            cursor.execute(f'SELECT t::text FROM "{table}" t')
            rows += [row for (row,) in cursor.fetchall()]
    return "\n".join(rows)
