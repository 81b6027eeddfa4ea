"""Evaluations asked for, the gate's verdict on them, and the problems they are of."""

import json
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from rest_framework.test import APIClient

from apps.inference.models import Adapter, Route
from apps.inference.services import adapter_add
from apps.jobs import services as jobs
from apps.jobs.models import Job, State
from apps.training.gate import gate_decide
from apps.training.models import Evaluation, EvaluationSet, Gate
from apps.training.selectors.evaluations import evaluation_records
from apps.training.services import data
from apps.training.services.evaluations import evaluation_create
from apps.users.models import User
from lyo import env
from tests.apps.training.conftest import add, chat

pytestmark = pytest.mark.django_db

ADAPTERS = "/api/v1/training/adapters"


def estimate(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high}


def measure(better: str, candidate: float, to_live: Any = None, to_base: Any = (0, 0, 0)) -> dict[str, Any]:
    """Of a report: the candidate's mean, and its differences with their intervals."""
    return {
        "better": better,
        "candidate": {"n": 100, **estimate(candidate, candidate - 0.1, candidate + 0.1)},
        "live": {"n": 100, **estimate(1, 0.9, 1.1)} if to_live else None,
        "base": {"n": 100, **estimate(2, 1.9, 2.1)},
        "difference_to_live": estimate(*to_live) if to_live else None,
        "difference_to_base": estimate(*to_base),
    }


def gate(name: str, kind: str, value: float = 0.0) -> Gate:
    return Gate(task="tutoring", measure=name, kind=kind, value=value)


BOUND, LIVE, BASE = Gate.Kind.BOUND, Gate.Kind.NOT_WORSE_THAN_LIVE, Gate.Kind.BETTER_THAN_BASE


@pytest.mark.parametrize(
    ("figures", "one", "passes"),
    [
        (measure("higher", 0.9), gate("turn_end", BOUND, 0.9), True),
        (measure("higher", 0.89), gate("turn_end", BOUND, 0.9), False),
        (measure("lower", 0.1), gate("turn_end", BOUND, 0.1), True),
        (measure("lower", 0.11), gate("turn_end", BOUND, 0.1), False),
        (measure("lower", 1.0, to_base=(-1, -1.2, -0.01)), gate("turn_end", BASE), True),
        (measure("lower", 1.0, to_base=(-1, -1.2, 0.01)), gate("turn_end", BASE), False),
        (measure("higher", 1.0, to_base=(0.3, 0.11, 0.5)), gate("turn_end", BASE, 0.1), True),
        (measure("higher", 1.0, to_base=(0.3, 0.09, 0.5)), gate("turn_end", BASE, 0.1), False),
        (measure("lower", 1.0, to_live=(0.01, -0.03, 0.05)), gate("turn_end", LIVE, 0.05), True),
        (measure("lower", 1.0, to_live=(0.01, -0.03, 0.06)), gate("turn_end", LIVE, 0.05), False),
        (measure("higher", 1.0, to_live=(0.0, -0.11, 0.1)), gate("turn_end", LIVE, 0.1), False),
        # where the base model is live, it is what must not be beaten
        (measure("lower", 1.0, to_base=(0.01, -0.03, 0.06)), gate("turn_end", LIVE, 0.05), False),
    ],
)
def test_what_a_gate_holds_back(figures: dict[str, Any], one: Gate, passes: bool) -> None:
    assert (gate_decide({"measures": {"turn_end": figures}}, [one]) == []) == passes


def test_who_is_held_back_is_told_which_measures_failed_and_by_how_much() -> None:
    report = {"measures": {"nll": measure("lower", 1.5, (0.5, 0.4, 0.6)), "turn_end": measure("higher", 0.5)}}
    gates = [gate("nll", LIVE, 0.05), gate("turn_end", BOUND, 0.9), gate("auc", BOUND, 0.6)]
    assert gate_decide(report, gates) == [
        "nll is 1.500 [1.400, 1.600], that of the live adapter 1.000 [0.900, 1.100]: a difference of 0.500 [0.400, "
        "0.600], where lower is better; with 95% confidence it may be worse by 0.05 at most",
        "turn_end is 0.500 [0.400, 0.600], and must be 0.9 at least",
    ]


def test_what_no_gate_judges_is_held_back() -> None:
    (failure,) = gate_decide({"measures": {"nll": measure("lower", 1.0)}}, [gate("auc", BOUND, 0.6)])
    assert failure == "no gate judges what was measured (nll): make one for the task"


# --- an evaluation's way ---


def adapter(**fields: Any) -> Adapter:
    return adapter_add(suffix="m", digest=uuid4().hex[:16], base_model=env.MODEL, base_digest="b" * 64, **fields)


def play(job_id: Any, result: dict[str, Any]) -> None:
    """Do what a worker does that has evaluated."""
    claim = jobs.job_claim(job_id=job_id, worker="test")
    assert claim is not None
    jobs.job_finish(claim=claim, state=State.SUCCEEDED, result=result)


def report(**measures: Any) -> dict[str, Any]:
    return {
        "model": env.MODEL,
        "model_digest": "b" * 64,
        "adapters": {"candidate": "a", "live": None, "base": None},
        "sets": {},
        "items": 1,
        "too_long": 0,
        "measures": measures,
    }


GOOD = report(nll=measure("lower", 1.0, to_base=(-1, -1.2, -0.8)), turn_end=measure("higher", 0.95))
BAD = report(nll=measure("lower", 1.0, to_base=(-1, -1.2, -0.8)), turn_end=measure("higher", 0.2))


def test_an_adapter_goes_live_by_an_evaluation_of_it_for_the_task(desk: APIClient) -> None:
    made, other = adapter(), adapter()

    def promoted(one: Adapter, **fields: Any) -> Any:
        return desk.post(f"{ADAPTERS}/{one.id}/promote", {"task": "tutoring", **fields})

    accepted = desk.post(f"{ADAPTERS}/{made.id}/evaluate", {"task": "tutoring", "limit": 16})
    assert accepted.status_code == 202
    job = Job.objects.get(id=accepted.json()["job"]["id"])
    assert (job.kind, job.queue, job.request["adapter"]) == ("evaluate", "evaluate", made.name)
    assert promoted(made).json()["errors"][0]["code"] == "not_evaluated"  # it is under way

    play(job.id, BAD)
    told = desk.get(f"/api/v1/training/evaluations/{accepted.json()['evaluation']['id']}").json()
    failure = "turn_end is 0.200 [0.100, 0.300], and must be 0.9 at least"
    assert (told["passed"], told["failures"], told["report"]) == (False, [failure], BAD)
    refused = promoted(made)
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (409, "held_back")
    assert failure in refused.json()["errors"][0]["detail"]

    again = desk.post(f"{ADAPTERS}/{made.id}/evaluate", {"task": "tutoring"}).json()
    play(again["job"]["id"], GOOD)
    assert promoted(other).json()["errors"][0]["code"] == "not_evaluated"
    assert promoted(made, task="engagement").json()["errors"][0]["code"] == "not_evaluated"
    assert promoted(made).status_code == 200
    assert Route.objects.get(task="tutoring", subject="").live == made
    metrics = desk.get(f"{ADAPTERS}/{made.id}").json()["metrics"]["evaluations"]["tutoring"]
    assert (metrics["id"], metrics["passed"], metrics["report"]) == (again["evaluation"]["id"], True, GOOD)


@pytest.mark.parametrize(
    ("body", "attr"), [({"task": "magic"}, "task"), ({"task": "tutoring", "limit": 0}, "limit"), ({}, "task")]
)
def test_what_is_asked_wrongly_is_named(desk: APIClient, body: dict[str, Any], attr: str) -> None:
    refused = desk.post(f"{ADAPTERS}/{adapter().id}/evaluate", body)
    assert (refused.status_code, refused.json()["errors"][0]["attr"]) == (400, attr)
    assert not Evaluation.objects.exists()


def test_learners_evaluate_nothing(ann: User, desk: APIClient) -> None:
    learner, made = APIClient(), adapter()
    learner.force_authenticate(ann)
    assert learner.post(f"{ADAPTERS}/{made.id}/evaluate", {"task": "tutoring"}).status_code == 403
    assert learner.get("/api/v1/training/evaluations").status_code == 403
    assert desk.post(f"{ADAPTERS}/{uuid4()}/evaluate", {"task": "tutoring"}).status_code == 404


def test_a_failed_evaluation_says_nothing_of_the_adapter(staff: User) -> None:
    evaluation, job = evaluation_create(user=staff, adapter=adapter(), task="tutoring")
    claim = jobs.job_claim(job_id=job.id, worker="test")
    assert claim is not None
    jobs.job_finish(claim=claim, state=State.FAILED, error={"code": "no_items", "detail": "nothing"})
    evaluation.refresh_from_db()
    assert (evaluation.passed, evaluation.report, evaluation.failures) == (None, None, [])


# --- the problems ---


def questions(evaluation: Evaluation) -> list[str]:
    return [record["messages"][0]["content"] for record in evaluation_records(evaluation)[1]]


def write(folder: Path, name: str, *asked: str) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps({**chat(one, 'Four.'), 'answer': '4'})}\n" for one in asked))
    return path


def register(folder: Path) -> str:
    said = StringIO()
    call_command("register_evaluation_sets", str(folder), stdout=said)
    return said.getvalue()


def test_the_problems_are_those_of_the_latest_versions_of_the_tasks_sets(staff: User, tmp_path: Path) -> None:
    write(tmp_path, "tutoring-sums", "2 + 2?", "1 + 3?")
    write(tmp_path, "tutoring-words", "Two and two?")
    register(tmp_path)
    register(tmp_path)
    assert EvaluationSet.objects.count() == 2
    write(tmp_path, "tutoring-sums", "3 + 1?", "0 + 4?", "4 + 0?")
    register(tmp_path)
    assert EvaluationSet.objects.count() == 3
    evaluation, _ = evaluation_create(user=staff, adapter=adapter(), task="tutoring", limit=2)
    sources, records = evaluation_records(evaluation)
    assert questions(evaluation) == ["3 + 1?", "0 + 4?", "Two and two?"]
    assert {record["answer"] for record in records} == {"4"}
    assert {name: (one["version"], one["items"]) for name, one in sources.items()} == {
        "tutoring-sums": ("2", 2),
        "tutoring-words": ("1", 1),
    }


def test_a_set_is_named_for_its_task(tmp_path: Path) -> None:
    write(tmp_path, "magic-sums", "2 + 2?")
    with pytest.raises(CommandError, match=r"magic-sums\.jsonl does not begin with one of tutoring"):
        register(tmp_path)


def test_without_a_set_the_validation_part_of_the_adapters_own_data_is_taken(staff: User) -> None:
    for number in range(40):
        add(f"What is {number} and {number + 1}?", str(2 * number + 1))
    version = data.version_build(user=staff, method="supervised", validation_share=0.25)[0]
    held_out = set(version.members.filter(split="validation").values_list("hash", flat=True))
    evaluation, _ = evaluation_create(user=staff, adapter=adapter(dataset_version=version.digest), task="tutoring")
    sources, records = evaluation_records(evaluation)
    assert 0 < len(records) == len(held_out) < 40
    assert sources["validation"]["version"] == version.digest
    unknown, _ = evaluation_create(user=staff, adapter=adapter(dataset_version="?"), task="tutoring")
    assert evaluation_records(unknown) == ({}, [])
