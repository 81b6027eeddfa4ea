import json
from io import BytesIO
from typing import Any
from uuid import uuid4

import httpx
import pytest
from django.core.exceptions import ValidationError
from rest_framework.test import APIClient

from apps.training.models import DataSetVersion, EvaluationSet, Example, Immutable, Member, Review
from apps.training.selectors.data import version_records
from apps.training.services import data as services
from apps.training.similarity import problem_hash
from apps.users.models import User
from apps.users.services import token_create
from tests.apps.training.conftest import add, chat, imported

pytestmark = pytest.mark.django_db

VERSIONS = "/api/v1/training/dataset-versions"


def split_of(version: DataSetVersion) -> dict[str, str]:
    return dict(Member.objects.filter(version=version).values_list("hash", "split"))


def build(**wanted: Any) -> DataSetVersion:
    return services.version_build(user=None, **{"method": "supervised", **wanted})[0]


def test_a_version_has_the_approved_examples_split_by_problem_with_statistics() -> None:
    added = [add(f"What is {n} + {n}?", answer) for n in range(40) for answer in ("Think.", str(2 * n))]
    add("Not yet?", state="pending")
    add("No.", state="rejected")
    version = build(validation_share=0.25)
    splits = split_of(version)
    assert set(splits) == {example.hash for example in added}
    parts: dict[str, set[str]] = {"train": set(), "validation": set()}
    for example in added:
        parts[splits[example.hash]].add(example.problem_hash)
    assert parts["train"] & parts["validation"] == set()
    chosen = {hash_ for hash_ in map(problem_hash, (f"What is {n} + {n}?" for n in range(40))) if hash_[:2] < "40"}
    assert parts["validation"] == chosen
    n = 2 * len(chosen)
    assert version.statistics == {
        "examples": {"train": 80 - n, "validation": n},
        "subjects": {"general": 80},
        "formats": {"chat": 80},
        "sources": {"file": 80},
    }


def test_unchanged_data_are_the_same_version_and_new_data_another() -> None:
    add("2 + 2?", "4")
    first, is_new = services.version_build(user=None, method="supervised", validation_share=0)
    again, is_new_again = services.version_renew(version=first)
    assert (is_new, is_new_again, again) == (True, False, first)
    assert build(subject="general", validation_share=0) == first  # the same examples, whatever they were asked by
    add("3 + 3?", "6")
    other, is_new = services.version_renew(version=first)
    assert (is_new, other.digest != first.digest) == (True, True)
    assert other.digest == build(validation_share=0).digest


def test_a_version_cannot_be_changed() -> None:
    add("2 + 2?", "4")
    version = build(validation_share=0)
    version.digest = "0" * 64
    with pytest.raises(Immutable):
        version.save()


def test_records_come_in_the_form_of_the_method() -> None:
    up, down = ({**chat("2 + 2?", answer), "liked": liked} for answer, liked in (("4", True), ("5", False)))
    pair = {"messages": [{"role": "user", "content": "3 + 3?"}], "chosen": "6", "rejected": "7"}
    for format_, record in (("thumb", up), ("thumb", down), ("preference", pair)):
        fields = {"task": "tutoring", "state": "approved", "source": "tutor"}
        services.example_new(format_=format_, record=record, **fields).save()

    def records(method: str) -> list[Any]:
        found = version_records(version=build(method=method, validation_share=0))
        return sorted(found, key=lambda record: json.dumps(record))

    assert records("supervised") == [chat("2 + 2?", "4"), chat("3 + 3?", "6")]
    assert records("kto") == [down, up]
    assert records("dpo") == [pair]


def test_pages_of_records_are_complete(monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any) -> None:
    monkeypatch.setattr("apps.training.selectors.data.PAGE", 2)
    for n in range(5):
        add(f"{n} + 1?", str(n + 1))
    version = build(validation_share=0)
    with django_assert_num_queries(4):  # three pages, and the end
        records = list(version_records(version=version))
    assert sorted(record["messages"][1]["content"] for record in records) == ["1", "2", "3", "4", "5"]
    assert list(version_records(version=version, split="validation")) == []


def test_of_files_the_validation_file_has_its_problems_to_itself(staff: User) -> None:
    lines = [json.dumps(chat(f"What is {n} + 1?", str(n + 1))).encode() for n in range(4)]
    train, validation = imported(staff, *lines[:3]), imported(staff, lines[2].replace(b'"3"', b'"three"'), lines[3])
    add("Elsewhere?")
    version = build(files=[train.id], validation_files=[validation.id])
    split = split_of(version)
    by_answer = {
        example.content["messages"][1]["content"]: split[example.hash]
        for example in Example.objects.filter(hash__in=split)
    }
    assert by_answer == {
        "1": "train",
        "2": "train",
        "3": "validation",
        "three": "validation",
        "4": "validation",
    }
    mixed = build(validation_files=[validation.id])
    assert mixed.statistics["examples"] == {"train": 3, "validation": 3}


def test_deleting_a_file_ends_the_versions_that_had_its_examples(staff: User) -> None:
    file = imported(staff, json.dumps(chat("2 + 2?", "4")).encode())
    version = build(files=[file.id], validation_share=0)
    services.file_delete(file=file)
    version.refresh_from_db()
    assert version.erased_at is not None


def test_a_version_of_nothing_is_refused() -> None:
    add("2 + 2?", state="pending")
    with pytest.raises(ValidationError, match="nothing to train on"):
        build()
    assert DataSetVersion.objects.count() == 0


# --- evaluation sets ---

SUMS = b"\n".join(json.dumps({"instruction": f"What is {n} + 5?", "output": str(n + 5)}).encode() for n in range(3))


def register(content: bytes, name: str = "sums") -> EvaluationSet:
    return services.evaluation_set_register(name=name, task="tutoring", stream=BytesIO(content))


def test_an_evaluation_set_has_versions_and_the_same_problems_are_the_same() -> None:
    first = register(SUMS)
    assert (str(first), first.items.count()) == ("sums@1", 3)
    assert register(SUMS) == first
    assert str(register(SUMS.replace(b"5?", b"6?"))) == "sums@2"
    with pytest.raises(ValidationError, match="line 1 is not JSON"):
        register(b"{")
    with pytest.raises(ValidationError, match="the file is empty"):
        register(b"\n")


def test_an_import_with_a_problem_of_an_evaluation_set_is_refused_by_its_line(staff: User) -> None:
    register(SUMS)
    lines = [json.dumps(chat(question, "x")).encode() for question in ("What is 9 + 5?", "what is 2+5")]
    with pytest.raises(ValidationError, match="line 2: its problem is in evaluation set sums@1"):
        imported(staff, *lines)
    assert Example.objects.count() == 0
    assert imported(staff, lines[0]).statistics["examples"] == 1


# --- the API ---


def test_versions_are_built_listed_and_shown(desk: APIClient, staff: User, django_assert_num_queries: Any) -> None:
    file = imported(staff, json.dumps(chat("2 + 2?", "4")).encode())
    made = desk.post(VERSIONS, {"files": [file.public_id], "validation_share": 0})
    assert made.status_code == 201
    version = made.json()
    row = DataSetVersion.objects.get()
    assert version == {
        "id": str(row.id),
        "method": "supervised",
        "task": "",
        "subject": "",
        "files": [file.public_id],
        "validation_files": [],
        "validation_share": 0.0,
        "statistics": {
            "examples": {"train": 1},
            "subjects": {"general": 1},
            "formats": {"chat": 1},
            "sources": {"file": 1},
        },
        "digest": row.digest,
        "erased_at": None,
        "created_at": row.created_at.isoformat().replace("+00:00", "Z"),
    }
    again = desk.post(VERSIONS, {"validation_share": 0})
    assert (again.status_code, again.json()["id"]) == (200, version["id"])
    with django_assert_num_queries(1):
        assert desk.get(VERSIONS).json()["results"] == [version]
    assert desk.get(f"{VERSIONS}/{row.id}").json() == version
    assert desk.get(f"{VERSIONS}/{uuid4()}").status_code == 404


@pytest.mark.parametrize(
    ("body", "attr"),
    [
        ({"method": "magic"}, "method"),
        ({"files": ["file-0"]}, "files.0"),
        ({"files": "file-0"}, "files"),
        ({"validation_share": 1}, "validation_share"),
        ({"task": "tutoring"}, None),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_version_names_the_field(desk: APIClient, body: dict[str, Any], attr: str | None) -> None:
    refused = desk.post(VERSIONS, body)
    assert (refused.status_code, refused.json()["errors"][0]["attr"]) == (400, attr or "non_field_errors")
    assert DataSetVersion.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_records_are_streamed_as_jsonl(live: str) -> None:
    staff = User.objects.create_superuser("grace", "grace@example.org")
    headers = {"Authorization": f"Bearer {token_create(user=staff)[1]}"}
    for n in range(250):
        add(f"{n} + é?", str(n))
    version = build(validation_share=0)
    response = httpx.get(f"{live}{VERSIONS}/{version.id}/records", headers=headers)
    assert response.headers["Content-Type"] == "application/jsonl"
    answers = [json.loads(line)["messages"][1]["content"] for line in response.text.splitlines()]
    assert sorted(map(int, answers)) == list(range(250))
    nothing = httpx.get(f"{live}{VERSIONS}/{version.id}/records?split=validation", headers=headers)
    assert (nothing.status_code, nothing.content) == (200, b"")
    assert httpx.get(f"{live}{VERSIONS}/{version.id}/records?split=x", headers=headers).status_code == 400
    assert Review.objects.count() == 0
