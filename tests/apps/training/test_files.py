"""/v1/files, by the official client over a real socket."""

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import openai
import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.core.files.storage import default_storage

from apps.common.sheets import workbook_of
from apps.training import similarity
from apps.training.models import Example, File
from apps.training.services import data as services
from apps.training.similarity import COMPARED, Sketch
from apps.users.models import User
from apps.users.services import token_create
from lyo import env
from tests.apps.training.conftest import chat, imported

pytestmark = pytest.mark.django_db(transaction=True)

GOOD = [json.dumps(chat(f"What is {n} + 1?", str(n + 1))).encode() for n in range(4)]
LONG = "Tell me, patiently and in short and simple words, why the sum of two even numbers is always even"


@pytest.fixture
def clerk(transactional_db: None) -> User:
    return User.objects.create_superuser("grace", "grace@example.org")


@pytest.fixture
def http(live: str, clerk: User) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {token_create(user=clerk)[1]}"}
    with httpx.Client(base_url=f"{live}/v1", headers=headers, timeout=20) as client:
        yield client


@pytest.fixture
def ai(live: str, http: httpx.Client) -> Iterator[openai.OpenAI]:
    key = http.headers["Authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{live}/v1", api_key=key, max_retries=0, timeout=20) as client:
        yield client


def upload(ai: openai.OpenAI, *lines: bytes, name: str = "train.jsonl") -> Any:
    return ai.files.create(file=(name, BytesIO(b"\n".join(lines))), purpose="fine-tune")


def refused(response: httpx.Response) -> tuple[int, str | None, str]:
    error = response.json()["error"]
    assert (File.objects.count(), Example.objects.count()) == (0, 0)
    return response.status_code, error["param"], error["message"]


def post(http: httpx.Client, content: bytes, name: str = "a.jsonl", **form: str) -> httpx.Response:
    return http.post("/files", files={"file": (name, content)}, data={"purpose": "fine-tune", **form})


def test_a_file_is_uploaded_listed_read_and_deleted(ai: openai.OpenAI, clerk: User) -> None:
    file = upload(ai, *GOOD)
    row = File.objects.get()
    assert file.model_dump(exclude_none=True) == {
        "id": f"file-{row.id.hex}",
        "object": "file",
        "bytes": len(b"\n".join(GOOD)),
        "created_at": int(row.created_at.timestamp()),
        "filename": "train.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "format": "chat",
        "task": "tutoring",
        "subject": "general",
        "digest": row.digest,
        "statistics": {"lines": 4, "examples": 4, "duplicates": 0, "near_duplicates": 0, "masked": 0},
    }
    assert row.user == clerk
    assert set(Example.objects.values_list("state", "task", "source", "learner")) == {
        ("approved", "tutoring", "file", None)
    }
    assert ai.files.retrieve(file.id) == file
    assert ai.files.list().data == [file]
    assert ai.files.content(file.id).read() == b"\n".join(GOOD)
    (stored,) = default_storage.listdir("training")[1]
    assert ai.files.delete(file.id).deleted is True
    assert (File.objects.count(), Example.objects.count()) == (0, 0)
    assert not default_storage.exists(f"training/{stored}")
    for call in (ai.files.retrieve, ai.files.delete, ai.files.content):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


def test_a_file_whose_bytes_are_missing_is_not_found(ai: openai.OpenAI) -> None:
    file = upload(ai, *GOOD)
    default_storage.delete(File.objects.get().content.name)
    with pytest.raises(openai.NotFoundError, match=f"The content of the file '{file.id}' is missing"):
        ai.files.content(file.id)


def test_a_broken_line_is_refused_by_its_number_and_nothing_is_kept(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        upload(ai, GOOD[0], b"", b'{"messages": [{"role": "user"}]}', GOOD[1])
    assert refusal.value.param == "file"
    assert 'line 3: messages[0] has no "content" (expected {"role"' in refusal.value.message
    assert (File.objects.count(), Example.objects.count()) == (0, 0)
    assert not default_storage.exists("training")


def test_a_line_that_is_broken_after_a_batch_undoes_the_batch(clerk: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "BATCH", 2)
    with pytest.raises(services.ValidationError, match="line 5 is not JSON"):
        imported(clerk, *GOOD, b"{")
    assert (File.objects.count(), Example.objects.count()) == (0, 0)
    assert imported(clerk, *GOOD).statistics["examples"] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file: The submitted file is empty."),
        (b" \n\n", "file: the file is empty: it has no line with an example"),
        (b'{"prompt": "x"}', "file: line 1: it is of no known format: it has none of"),
        (GOOD[0] + b'\n{"instruction": "a", "output": "b"}', "file: line 2: it is of the format instruction, but the"),
        (GOOD[0] + b"\n" + b"x" * 3_000_000, "file: line 2: it has 3000000 bytes, of at most 262144"),
        (b"\xff\xfe\x00", "file: line 1 is not UTF-16: byte 0 is invalid"),
        (GOOD[0] + b"\n\n\xff", "file: line 3 is not UTF-8: byte 0 is invalid."),
        (b'{"instruction": "a", "output": "b", "output": "c"}', 'file: line 1 has "output" twice in an object.'),
        (b"instruction,output\na,b\nc\n", "file: line 1 is not JSON"),
    ],
)
def test_bad_content_is_refused(http: httpx.Client, content: bytes, message: str) -> None:
    status, param, said = refused(post(http, content))
    assert (status, param) == (400, "file")
    assert said.startswith(message)


def test_bad_forms_are_refused(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(post(http, GOOD[0], purpose="vision"))[:2] == (400, "purpose")
    assert refused(post(http, GOOD[0], subject="alchemy"))[:2] == (400, "subject")
    assert refused(http.post("/files", files={"purpose": (None, "fine-tune")}))[:2] == (400, "file")
    assert refused(http.post("/files", json={}))[0] == 415
    broken = http.post("/files", content=b"--x\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert refused(broken)[0] == 400
    assert refused(http.post("/files", content=b"x", headers={"Content-Type": "multipart/form-data"}))[0] == 400
    chunked = http.post("/files", content=iter([b"x"]), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert refused(chunked)[:2] == (400, "file")
    monkeypatch.setattr(env, "MAX_FILE_MB", 1)
    assert refused(post(http, b"x" * 2**21)) == (413, None, "A file may have 1 MB at most.")


def test_the_same_bytes_are_the_same_file(ai: openai.OpenAI) -> None:
    first = upload(ai, *GOOD)
    assert upload(ai, *GOOD, name="other.jsonl") == first
    assert len(default_storage.listdir("training")[1]) == 1


def test_duplicates_are_counted_and_kept_once(clerk: User) -> None:
    near = [json.dumps(chat(f"{LONG}{end}", "2a + 2b = 2(a + b)")).encode() for end in ("?", "!", ", teacher?")]
    other = json.dumps(chat(f"{LONG} {7}?", "2a + 2b = 2(a + b)")).encode()
    spaced = near[0].replace(b'": "', b'":   "')
    file = imported(clerk, near[0], near[0], spaced, near[1], near[2], other)
    assert file.statistics == {"lines": 6, "examples": 2, "duplicates": 2, "near_duplicates": 2, "masked": 0}
    assert file.examples.count() == 2


def test_lines_of_one_question_are_each_compared_with_few(clerk: User, monkeypatch: pytest.MonkeyPatch) -> None:
    compared, is_alike = [], Sketch.is_alike

    def counted(one: Sketch, other: Sketch) -> bool:
        compared.append(one)
        return is_alike(one, other)

    monkeypatch.setattr(Sketch, "is_alike", counted)
    answers = (f"{chr(97 + number // 26)}{chr(97 + number % 26)} is it" for number in range(300))
    lines = [json.dumps(chat(f"{LONG} {LONG}?", answer)).encode() for answer in answers]
    file = imported(clerk, *lines)
    assert file.statistics["examples"] == 300
    assert 300 < len(compared) <= 300 * 2 * COMPARED


def test_a_file_that_takes_too_long_is_refused_and_nothing_is_kept(
    http: httpx.Client, clerk: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "IMPORTING_S", -1.0)
    status, param, message = refused(post(http, b"\n".join(GOOD)))
    assert (status, param) == (400, "file")
    assert message == "file: reading it took more than -1 s, up to line 1: send it in parts"


def test_files_share_examples_which_go_with_the_last_of_them(clerk: User) -> None:
    one, two = imported(clerk, *GOOD[:3]), imported(clerk, *GOOD[2:])
    assert (one.examples.count(), two.examples.count(), Example.objects.count()) == (3, 2, 4)
    services.file_delete(file=one)
    assert Example.objects.count() == 2
    assert two.examples.count() == 2


def test_imported_examples_are_masked_and_keep_what_was_uploaded(clerk: User) -> None:
    file = imported(clerk, json.dumps(chat("I am at a@b.org", "Hello")).encode(), GOOD[0], subject="physics")
    assert file.statistics["masked"] == 1
    masked, plain = Example.objects.order_by("original")
    assert masked.content == chat("I am at <EMAIL_ADDRESS>", "Hello")
    assert masked.original == chat("I am at a@b.org", "Hello")
    assert plain.original is None
    assert {masked.subject, plain.subject} == {"physics"}


def test_pages_of_files(ai: openai.OpenAI, http: httpx.Client) -> None:
    ids = [upload(ai, line).id for line in GOOD[:3]]
    page = ai.files.list(limit=2, order="asc")
    assert ([file.id for file in page.data], page.has_more) == (ids[:2], True)
    assert [file.id for file in page] == ids  # the client follows
    assert [file.id for file in ai.files.list()] == ids[::-1]
    assert [file.id for file in ai.files.list(after=ids[1])] == ids[:1]
    assert ai.files.list(purpose="vision").data == []
    assert http.get("/files", params={"limit": 0}).json()["error"]["param"] == "limit"
    assert http.get("/files", params={"after": "file-x"}).status_code == 404


def test_files_are_for_those_who_were_given_the_permissions(live: str) -> None:
    learner = User.objects.create_user("ada", "ada@example.org")
    headers = {"Authorization": f"Bearer {token_create(user=learner)[1]}"}
    paths = ("/v1/files", "/v1/files/file-0", "/api/v1/training/examples", "/api/v1/training/dataset-versions")
    with httpx.Client(base_url=live, headers=headers) as client:
        assert [client.get(path).status_code for path in paths] == [403] * 4
        assert post(client, GOOD[0]).status_code == 404  # not under /v1
        error = client.post("/v1/files", files={"file": ("a", GOOD[0])}).json()["error"]
        assert (error["code"], error["message"]) == ("permission_denied", "You need the permission training.add_file.")
        learner.user_permissions.add(Permission.objects.get(codename="view_file"))
        assert [client.get(path).status_code for path in paths] == [200, 404, 403, 403]
        assert client.delete(paths[1]).status_code == 403


# --- uploaded again ---


def test_a_file_that_is_uploaded_again_keeps_what_was_said_last(http: httpx.Client, clerk: User) -> None:
    first = post(http, GOOD[0], subject="physics").json()
    assert (first["subject"], first["task"]) == ("physics", "tutoring")
    again = post(http, GOOD[0], subject="math", task="learning_path").json()
    assert (again["id"], again["subject"], again["task"]) == (first["id"], "math", "learning_path")
    assert post(http, GOOD[0]).json() == again  # which says nothing
    assert list(Example.objects.values_list("subject", "task")) == [("math", "learning_path")]
    both = imported(clerk, *GOOD[:2], subject="biology")
    assert set(Example.objects.values_list("subject", "task")) == {
        ("biology", "learning_path"),
        ("biology", "tutoring"),
    }
    assert (both.subject, both.task) == ("biology", "tutoring")


def test_a_task_that_a_format_is_not_for_is_refused_and_changes_nothing(http: httpx.Client) -> None:
    query = b'{"query": "snow", "intent": "explain", "subject": "", "level": ""}'
    assert refused(post(http, query, task="tutoring")) == (
        400,
        "task",
        "task: Examples of the format query are for the task query.",
    )
    assert post(http, query).json()["task"] == "query"
    assert post(http, query, task="tutoring").status_code == 400
    assert File.objects.get().task == "query"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.JSONL", b"\xef\xbb\xbf" + GOOD[0]),
        ("a.jsonl", GOOD[0].decode().encode("utf-16")),
        ("a.jsonl", GOOD[0].decode().encode("utf-16-le")),
        (
            "a.csv",
            (
                "messages\n" + '"' + json.dumps(chat("What is 0 + 1?", "1")["messages"]).replace('"', '""') + '"'
            ).encode(),
        ),
        ("A.XLSX", workbook_of(["messages"], [[json.dumps(chat("What is 0 + 1?", "1")["messages"])]])),
    ],
)
def test_examples_come_in_every_encoding_and_as_sheets(http: httpx.Client, name: str, content: bytes) -> None:
    assert post(http, content, name).json()["format"] == "chat"
    assert Example.objects.get().content == json.loads(GOOD[0])


def test_a_sheet_has_a_column_for_each_field_and_names_the_line_and_column(clerk: User) -> None:
    header = b"instruction;input;output;\r\n"
    file = imported(clerk, header + b"Add.;2 + 3;5;\r\n;;;\r\nSay hi.;;Hi.;\r\n", name="a.CSV")
    assert (file.format, file.statistics["lines"]) == ("instruction", 2)
    learning = b'goal,current_level,time_available,learning_path\nSew,beginner,30,"[""Week 1""]"\n'
    assert imported(clerk, learning, name="b.csv").task == "learning_path"
    for content, said in (
        (header + b"Add.;2 + 3;;\r\n", "line 2: output is empty"),
        (b"query,intent,subject,level\nsnow,explain,,\nice,melt,,\n", "line 3: intent is .melt., not one of"),
        (b"instruction,output,hue\nAdd,5,red\n", "line 2, column hue is not JSON"),
        (learning + b"Knit,beginner,soon,[]\n", "line 3, column time_available is not JSON"),
        (b"instruction,output\na,b,c\n", "line 2: it does not have the 2 columns of the header"),
        (b"instruction,output\na,\xff\n", "line 2 is not UTF-8"),
    ):
        with pytest.raises(services.ValidationError, match=said):
            imported(clerk, content, name="c.csv")
    assert File.objects.count() == 2


def test_a_problem_of_an_evaluation_set_is_refused_however_many_are_like_it(
    clerk: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.evaluation_set_register(name="sums", task="tutoring", stream=BytesIO(GOOD[0]))
    monkeypatch.setattr(similarity, "COMPARED", 0)  # as if others came first
    with pytest.raises(ValidationError, match="line 1: its problem is in evaluation set sums"):
        imported(clerk, GOOD[0])


def test_an_evaluation_set_comes_as_a_sheet(clerk: User) -> None:
    sheet = b"instruction;output;answer;hint;level\nWhat is 2 + 3?;5;5;true;beginner\nWhat is 4 + 4?;8;;;\n"
    made = services.evaluation_set_register(
        name="sums", task="tutoring", stream=BytesIO(sheet.decode().encode("utf-16")), filename="SUMS.CSV"
    )
    assert list(made.items.values_list("answer", "hint", "level")) == [("5", True, "beginner"), ("", False, "")]
