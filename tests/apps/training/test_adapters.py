"""The registry over REST: what is told of adapters, and promotion behind the gate."""

import json
import os
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Permission
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from apps.inference import store
from apps.inference.models import Adapter, Route, RouteChange
from apps.inference.services import adapter_add
from apps.inference.tasks import delete_expired
from apps.jobs import services as jobs
from apps.jobs.models import Job, State
from apps.training.models import Evaluation
from apps.users.models import User
from lyo import env

pytestmark = pytest.mark.django_db

ADAPTERS = "/api/v1/training/adapters"
ROUTES = "/api/v1/training/routes"
TUTORING = f"{ROUTES}/tutoring"
LIST_QUERIES = 2


def adapter(suffix: str = "maths", **fields: Any) -> Adapter:
    return adapter_add(
        **{"suffix": suffix, "digest": uuid4().hex[:16], "base_model": env.MODEL, "base_digest": "b" * 64, **fields}
    )


def evaluated(made: Adapter, passed: bool | None = True, **fields: Any) -> Evaluation:
    failures = [] if passed else ["nll: 1.20 is not below live's 1.11.", "leak: 0.31 is above 0.10."]
    report = {"nll": 1.05} if passed is not None else None
    return Evaluation.objects.create(
        **{"adapter": made, "task": "tutoring", "passed": passed, "failures": failures, "report": report, **fields}
    )


def promote(client: APIClient, made: Adapter, **fields: Any) -> Any:
    return client.post(f"{ADAPTERS}/{made.id}/promote", {"task": "tutoring", **fields})


def refused(response: Any) -> tuple[int, str, str | None]:
    (error,) = response.json()["errors"]
    return response.status_code, error["code"], error["attr"]


def test_an_adapter_tells_where_it_comes_from_and_how_it_does(desk: APIClient) -> None:
    made = adapter(
        dataset_version="d" * 64,
        recipe={"r": 16, "seed": 7},
        metrics={"step": 200, "train_loss": 1.2},
        task="tutoring",
        licence="Gemma Terms of Use",
        size=3_700_000,
    )
    evaluated(made, passed=False)
    last = evaluated(made)
    evaluated(made, passed=None)
    of_maths = evaluated(made, subject="math", passed=False)
    (listed,) = desk.get(ADAPTERS, {"name": made.name}).json()["results"]
    whole = desk.get(f"{ADAPTERS}/{made.id}").json()
    verdicts = {
        purpose: {name: value for name, value in evaluation.items() if name != "report"}
        for purpose, evaluation in whole["metrics"]["evaluations"].items()
    }
    summary = {**whole, "metrics": {**whole["metrics"], "evaluations": verdicts}}
    assert listed == {name: value for name, value in summary.items() if name != "licence"}
    assert whole == {
        "id": str(made.id),
        "name": f"ft:{env.MODEL}:maths@{made.digest}",
        "digest": made.digest,
        "base_model": env.MODEL,
        "base_digest": "b" * 64,
        "state": "idle",
        "task": "tutoring",
        "subject": "",
        "dataset_version": "d" * 64,
        "recipe": {"r": 16, "seed": 7},
        "seed": 7,
        "metrics": {
            "training": {"step": 200, "train_loss": 1.2},
            "evaluations": {
                "tutoring": {"id": str(last.id), "passed": True, "failures": [], "report": {"nll": 1.05}},
                "tutoring/math": {
                    "id": str(of_maths.id),
                    "passed": False,
                    "failures": of_maths.failures,
                    "report": {"nll": 1.05},
                },
            },
        },
        "licence": "Gemma Terms of Use",
        "size": 3_700_000,
        "erased_at": None,
        "created_at": listed["created_at"],
    }


def test_adapters_are_listed_newest_first_and_filtered_at_the_same_cost(
    desk: APIClient, django_assert_num_queries: Any
) -> None:
    first, second = adapter(task="tutoring"), adapter(task="engagement")
    evaluated(first)
    with django_assert_num_queries(LIST_QUERIES):
        found = desk.get(ADAPTERS).json()["results"]
    assert [row["id"] for row in found] == [str(second.id), str(first.id)]
    for _ in range(2):
        evaluated(adapter())
    with django_assert_num_queries(LIST_QUERIES):
        assert len(desk.get(ADAPTERS).json()["results"]) == 4
    promote(desk, first)

    def ids(**query: str) -> list[str]:
        return [row["id"] for row in desk.get(ADAPTERS, query).json()["results"]]

    assert ids(task="engagement") == [str(second.id)]
    assert ids(state="live") == [str(first.id)]
    assert ids(name="nothing") == []
    assert refused(desk.get(ADAPTERS, {"state": "asleep"})) == (400, "invalid_choice", "state")
    page = desk.get(ADAPTERS, {"page_size": 3}).json()
    assert len(page["results"]) == 3
    assert len(desk.get(page["next"]).json()["results"]) == 1


def test_adapters_are_for_those_who_were_given_the_permissions(db: None) -> None:
    clerk = User.objects.create_user("eve", "eve@example.org", role="staff")
    client, made = APIClient(), adapter()
    client.force_authenticate(clerk)
    evaluated(made)
    urls = [ADAPTERS, f"{ADAPTERS}/{made.id}", ROUTES, TUTORING, f"{TUTORING}/changes"]
    assert {client.get(url).status_code for url in urls} == {403}
    assert promote(client, made).status_code == 403
    assert {client.post(f"{TUTORING}/{verb}").status_code for verb in ("rollback", "complete")} == {403}
    assert not Route.objects.exists()
    clerk.user_permissions.add(Permission.objects.get(codename="view_adapter"))
    client.force_authenticate(User.objects.get(id=clerk.id))
    assert client.get(ADAPTERS).status_code == 200
    assert promote(client, made).status_code == 403


def test_an_adapter_that_is_entered_again_keeps_what_was_said_last() -> None:
    first = adapter(digest="a" * 16, task="tutoring", licence="MIT")
    again = adapter(digest="a" * 16, task="query", subject="math")
    assert (again.id, again.task, again.subject, again.licence) == (first.id, "query", "math", "MIT")
    again = adapter(digest="a" * 16)
    assert (again.task, again.subject) == ("query", "math")


def test_without_an_evaluation_for_the_task_an_adapter_is_held_back(desk: APIClient) -> None:
    made = adapter(metrics={"validation_loss": 0.1})
    evaluated(made, task="engagement")
    evaluated(made, subject="math")
    evaluated(made, passed=None)
    response = promote(desk, made)
    assert refused(response) == (409, "not_evaluated", None)
    assert Route.objects.count() == 0
    assert promote(desk, made, subject="math").status_code == 200


def test_an_adapter_that_the_gate_held_back_is_refused_with_what_failed(desk: APIClient) -> None:
    made = adapter()
    evaluated(made)
    last = evaluated(made, passed=False)
    response = promote(desk, made)
    assert refused(response) == (409, "held_back", None)
    assert (response.json()["failures"], response.json()["evaluation"]) == (last.failures, str(last.id))
    evaluated(made)
    assert promote(desk, made).status_code == 200


def test_an_override_is_done_and_recorded(desk: APIClient, staff: User) -> None:
    made = adapter()
    last = evaluated(made, passed=False)
    assert promote(desk, made, canary_share=0.5, override_reason="a demo").status_code == 200
    (change,) = desk.get(f"{TUTORING}/changes").json()["results"]
    assert change == {
        "action": "canary",
        "before": {"live": None, "canary": None, "canary_share": 0.0},
        "after": {"live": None, "canary": made.name, "canary_share": 0.5},
        "user": staff.username,
        "reason": "a demo",
        "evaluation_id": str(last.id),
        "overridden": last.failures,
        "test": None,
        "created_at": change["created_at"],
    }
    other = adapter()
    assert promote(desk, other, task="engagement", override_reason="a demo").status_code == 200
    assert RouteChange.objects.first().overridden == ["It was not evaluated for this: ask for an evaluation first."]


def test_a_canary_is_followed_completed_and_rolled_back(desk: APIClient) -> None:
    a, b = adapter("a"), adapter("b")
    for made in (a, b):
        evaluated(made)
    assert desk.get(TUTORING).status_code == 404
    promote(desk, a)
    started = promote(desk, b, canary_share=0.1).json()
    assert (started["task"], started["subject"], started["live"], started["canary"], started["canary_share"]) == (
        "tutoring",
        "",
        a.name,
        b.name,
        0.1,
    )
    assert desk.get(TUTORING).json() == started
    assert desk.get(ROUTES).json()["results"] == [started]
    assert started["test"]["measures"]["failed"] == {
        "live": {"n": 0, "bad": 0, "rate": None},
        "canary": {"n": 0, "bad": 0, "rate": None},
        "difference": [-1.0, 1.0],
        "margin": 0.05,
        "evidence": started["test"]["measures"]["failed"]["evidence"],
        "threshold": 40.0,
        "worse": False,
    }
    completed = desk.post(f"{TUTORING}/complete", {}).json()
    assert (completed["live"], completed["canary"], completed["test"]) == (b.name, None, None)
    stale = desk.post(f"{TUTORING}/rollback", {"if_live": a.name})
    assert (refused(stale), stale.json()["live"], stale.json()["canary"]) == (
        (409, "route_changed", None),
        b.name,
        None,
    )
    assert refused(desk.post(f"{TUTORING}/rollback", {"if_canary": b.name})) == (409, "route_changed", None)
    response = desk.post(f"{TUTORING}/rollback", {"reason": "worse in class", "if_live": b.name, "if_canary": None})
    assert (response.status_code, response.json()["live"]) == (200, a.name)
    for _ in range(2):
        assert refused(desk.post(f"{TUTORING}/rollback", {})) == (409, "nothing_to_roll_back", None)
    assert refused(promote(desk, b, if_live=None)) == (409, "route_changed", None)
    assert refused(desk.post(f"{TUTORING}/complete", {})) == (409, "no_canary", None)
    changes = desk.get(f"{TUTORING}/changes").json()["results"]
    assert [change["action"] for change in changes] == ["rollback", "complete", "canary", "promote"]
    assert changes[0]["reason"] == "worse in class"
    assert changes[1]["test"]["canary"] == b.name


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("task", "cooking", "invalid_choice"),
        ("subject", "cooking", "invalid_choice"),
        ("canary_share", 0, "invalid"),
        ("canary_share", 1.5, "max_value"),
        ("share", 0.5, "unknown"),
    ],
)
def test_a_wrong_field_is_named(desk: APIClient, field: str, value: Any, code: str) -> None:
    assert refused(promote(desk, adapter(), **{field: value})) == (400, code, field)


def test_unknown_adapters_and_routes_are_not_found(desk: APIClient) -> None:
    assert desk.get(f"{ADAPTERS}/{uuid4()}").status_code == 404
    assert desk.post(f"{ADAPTERS}/{uuid4()}/promote", {"task": "tutoring"}).status_code == 404
    assert {desk.get(f"{ROUTES}/{task}").status_code for task in ("tutoring", "cooking")} == {404}
    assert desk.post(f"{ROUTES}/cooking/rollback", {}).status_code == 404


# --- import and download ---

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights", "meta.json": b'{"seed": 1}'}


def zipped(files: dict[str, bytes]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def upload(client: APIClient, content: bytes, **fields: Any) -> Any:
    file = SimpleUploadedFile("adapter.zip", content)
    return client.post(ADAPTERS, {"file": file, "suffix": "maths", **fields}, format="multipart")


def test_an_upload_is_unpacked_and_waits_for_a_worker_to_check_it(
    desk: APIClient, staff: User, kept: Path, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    junk = {"checkpoint-1/optimizer.pt": b"", "._meta.json": b""}
    response = upload(desk, zipped({**junk, **FILES}), task="tutoring", licence="MIT")
    assert (response.status_code, response.json()["skipped"]) == (202, [*junk])
    job = Job.objects.get()
    assert (response.json()["job"]["id"], job.kind, job.queue, job.user) == (
        str(job.id),
        "import_adapter",
        "evaluate",
        staff,
    )
    folder = job.request.pop("folder")
    assert job.request == {"suffix": "maths", "task": "tutoring", "subject": "", "licence": "MIT"}
    assert {path.name: path.read_bytes() for path in (kept / folder).iterdir()} == FILES
    claim = jobs.job_claim(job_id=job.id, worker="test")
    assert claim is not None
    with django_capture_on_commit_callbacks(execute=True):
        jobs.job_finish(claim=claim, state=State.FAILED, error={"code": "adapter_refused", "detail": "no"})
    assert list((kept / "incoming").iterdir()) == []


def test_an_upload_that_nobody_is_to_check_any_more_is_deleted_after_a_day(desk: APIClient, kept: Path) -> None:
    delete_expired()  # where nothing was ever uploaded
    checks = [upload(desk, zipped(FILES), suffix=suffix).json()["job"]["id"] for suffix in ("ended", "waits", "new")]
    ended, waits, new = (Job.objects.get(id=job).request["folder"] for job in checks)
    Job.objects.filter(request__folder=ended).update(state=State.FAILED)
    Job.objects.filter(request__folder=new).delete()
    for name in ("jobless", "empty"):
        (kept / "incoming" / name).mkdir()
    (kept / "incoming" / "jobless" / "meta.json").write_text("{}")
    yesterday = time.time() - 25 * 3600
    for folder in (ended, waits, "incoming/jobless", "incoming/empty"):
        for path in (*(kept / folder).iterdir(), kept / folder):
            os.utime(path, (yesterday, yesterday))
    delete_expired()
    assert {path.name for path in (kept / "incoming").iterdir()} == {Path(waits).name, Path(new).name}
    assert {path.name for path in (kept / waits).iterdir()} == set(FILES)


@pytest.mark.parametrize(
    ("changed", "field", "words"),
    [
        ({"file": zipped({**FILES, "../evil.json": b""})}, "file", "'../evil.json' leads out of the folder"),
        ({"file": zipped({"adapter_config.json": b"{}", "adapter_model.bin": b""})}, "file", "which is not opened"),
        ({"file": zipped({**FILES, "meta.json": b"{"})}, None, "meta.json is not JSON"),
        ({"file": zipped({**FILES, "meta.json": b'{"a": "\\u0000"}'})}, None, "meta.json has a NUL character"),
        ({"file": b"weights"}, "file", "neither a .zip nor a .tar, .tar.gz or .tar.bz2"),
        ({"file": zipped(FILES), "suffix": "a b@c"}, "suffix", "does not match"),
        ({"file": zipped(FILES), "task": "cooking"}, "task", "not a valid choice"),
    ],
)
def test_a_bad_upload_is_refused_and_nothing_is_kept(
    desk: APIClient, kept: Path, changed: dict[str, Any], field: str | None, words: str
) -> None:
    response = upload(desk, changed.pop("file"), **changed)
    (error,) = response.json()["errors"]
    assert (response.status_code, error["attr"]) == (400, field)
    assert words in error["detail"]
    assert Job.objects.count() == 0
    assert not kept.exists()


def test_an_upload_that_is_too_large_is_refused(desk: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lyo.env.MAX_ADAPTER_MB", 0)
    assert upload(desk, bytes(2**17)).status_code == 413


def test_a_download_is_the_folder_with_a_card_of_what_is_known(desk: APIClient, kept: Path) -> None:
    made = adapter(
        dataset_version="d" * 64,
        recipe={"r": 16, "seed": 7},
        metrics={"train_loss": 1.25},
        task="tutoring",
        licence="Gemma Terms of Use apply.",
    )
    assert desk.get(f"{ADAPTERS}/{made.id}/download").status_code == 404
    (kept / made.digest).mkdir(parents=True)
    for name, content in {**FILES, "README.md": b"of its training"}.items():
        (kept / made.digest / name).write_bytes(content)
    evaluated(made, passed=False)
    response = desk.get(f"{ADAPTERS}/{made.id}/download")
    assert (response["Content-Type"], response["Content-Disposition"]) == (
        "application/zip",
        f'attachment; filename="{made.digest}.zip"',
    )

    async def body() -> bytes:
        return b"".join([part async for part in response.streaming_content])

    with zipfile.ZipFile(BytesIO(async_to_sync(body)())) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    card = content.pop("README.md").decode()
    assert content == FILES
    head = card.split("---")[1]
    assert f"base_model: {env.MODEL}" in head and "library_name: peft" in head
    for known in (
        made.name,
        "b" * 64,
        "d" * 64,
        "| Seed | 7 |",
        json.dumps({"train_loss": 1.25}, indent=2),
        "### tutoring: held back",
        "- leak: 0.31 is above 0.10.",
        '"nll": 1.05',
        "Gemma Terms of Use apply.",
    ):
        assert known in card


def test_the_store_keeps_fetches_and_forgets_folders(kept: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "a").write_text("one")
    store.put("incoming/x", source)
    (source / "a").write_text("two")
    (source / "b").write_text("three")
    store.put("incoming/x", source)
    store.get("incoming/x", target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "one", "b": "three"}
    store.delete("incoming/x")
    store.delete("incoming/never")
    assert store.names("incoming/x") == []
