"""Promise 5 as clients meet it: every answer is one that the schema documents, names what is wrong, changes nothing."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import schemathesis
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, settings
from schemathesis.config._checks import POSITIVE_DATA_ACCEPTANCE_EXPECTED_STATUSES as EXPECTED
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
)

from lyo import env
from lyo.stack import Stack
from tests.flows.conftest import staff_of
from tests.flows.learner import Learner
from tests.helpers import until

PASSED_OVER = {ParameterLocation.QUERY, ParameterLocation.HEADER, ParameterLocation.COOKIE}
PUBLIC = ("/api/v1/auth/register", "/api/v1/auth/login", "/api/v1/auth/confirm")
JSON = {"Content-Type": "application/json"}
SSE = {"Accept": "text/event-stream"}

# --- what a machine thinks of ---

MANY = settings(  # of each operation, beside the systematic cases
    max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEW = settings(MANY, max_examples=5)  # nothing of them is read
# Where valid input may be refused for what a schema cannot say, and the rest is checked all the same.
MORE_THAN_A_SCHEMA_SAYS = {
    "/api/v1/auth/register$": "a password may be too common, a name taken",
    "/api/v1/auth/(confirm|password|tokens)$": "a token or a password may be wrong, or too common",
    "/api/v1/me$": "OpenAPI 3.0 gives a DELETE no body, and erasure asks for the password in one",
    "/api/v1/feed/events$": "the items in it must exist, and a dwell has seconds",
    "/api/v1/jobs/{job_id}/events$": "an event must be one of the stream",
    "/api/v1/training/(adapters|evaluation-sets)$": "a file must be an archive, or lines of examples",
    "/api/v1/training/(comparisons|dataset-versions)$": "what it names must exist",
    "/api/v1/training/examples/{example_id}/review$": "an edit has a content, and a content an edit",
    "/v1/files$": "a file must be lines of examples",
    "/v1/chat/completions$": "a JSON schema must be one that can be followed; top_logprobs needs logprobs",
}
CONFIG = {
    "max-stream-events": 3,
    "request-timeout": 60,
    "checks": {"positive_data_acceptance": {"expected-statuses": [*EXPECTED, "410"]}},  # an old cursor's
}
SCHEMA = schemathesis.openapi.from_dict(
    SchemaGenerator().get_schema(public=True), config=schemathesis.Config.from_dict(CONFIG)
)


@pytest.fixture
def answered(learner: Learner) -> dict[str, str]:
    """Ids of a conversation, its answer, and the job that made it."""
    job = learner.ask("Is 7 prime?", max_tokens=2)
    until(lambda: learner.job(job)["state"] == "succeeded", 60)
    message = learner.job(job)["result"]["message"]["id"]
    conversation = learner.http.get("/api/v1/tutor/conversations").json()["results"][0]["id"]
    return {"conversation_id": conversation, "message_id": message, "job_id": job}


def tame(case: schemathesis.Case) -> None:
    """Name a model that exists, and leave it little to do."""
    if not isinstance(case.body, dict) or not case.path.endswith(("/messages", "/completions", "/embeddings")):
        return
    if isinstance(case.body.get("model"), str):
        case.body["model"] = "embedding" if case.path.endswith("/embeddings") else env.MODEL
    if not case.path.endswith("/embeddings") and case.body.get("max_tokens") is None:
        case.body["max_tokens"] = 1
    if isinstance(case.body.get("n"), int | float) and case.body["n"] > env.GENERATIONS_AT_ONCE:
        case.body["n"] = 1000  # too much for this stack as well, which allows more
    most = env.CONTEXT_TOKENS if case.path.endswith("/completions") else env.CONTEXT_TOKENS // 2
    for name, limit in {"max_tokens": most, "max_completion_tokens": most, "n": env.GENERATIONS_AT_ONCE}.items():
        if (
            isinstance(case.body.get(name), int | float) and 2 < case.body[name] <= limit
        ):  # what is too much stays too much
            case.body[name] = 2


def put_ids(case: schemathesis.Case, ids: dict[str, str]) -> None:
    """Name rows that exist, where the path is not what is wrong with the request."""
    path = case.meta and case.meta.components.get(ParameterLocation.PATH)
    if not (path and path.mode.is_negative):
        case.path_parameters.update({name: ids[name] for name in case.path_parameters if name in ids})


def is_empty(value: Any) -> bool:
    """Whether some text in it is nothing but blanks, or has a NUL, which no text of ours may be: no schema says so."""
    match value:
        case str():
            return "\0" in value or not value.strip()
        case dict():
            return any(is_empty(inner) for pair in value.items() for inner in pair)
        case list():
            return any(map(is_empty, value))
    return False


def not_judged(case: schemathesis.Case, nightly: bool) -> list[Any]:
    """Take out of the query what no operation knows, which is passed over as everywhere on the web.

    Returns the checks that do not hold for the case: that it is refused where nothing was wrong with it but its
    credentials, which the tests add, and that it is taken where a schema does not say all. By day only what is said is
    checked, not also what is taken and what is refused.
    """
    known = {parameter.name for parameter in case.operation.query}
    for name in [name for name in case.query or () if name not in known]:
        del case.query[name]
    if not nightly:
        return [negative_data_rejection, positive_data_acceptance]
    components = case.meta.components if case.meta else {}
    negative = {place for place, component in components.items() if component.mode.is_negative}
    unjudged = [negative_data_rejection] if negative and negative <= PASSED_OVER else []
    said_elsewhere = any(re.match(path, case.path) for path in MORE_THAN_A_SCHEMA_SAYS)
    if said_elsewhere or is_empty([case.body, dict(case.query or {}), dict(case.path_parameters or {})]):
        unjudged.append(positive_data_acceptance)
    return unjudged


@SCHEMA.parametrize()
@MANY
def test_a_learner_gets_no_answer_that_is_not_documented(
    case: schemathesis.Case, stack: Stack, learner: Learner, answered: dict[str, str], nightly: bool
) -> None:
    put_ids(case, answered)
    tame(case)
    unjudged = not_judged(case, nightly)
    response = case.call(stack.web, headers={"Authorization": learner.http.headers["Authorization"]})
    streamed = "text/event-stream" in response.headers.get("content-type", [""])[0]
    excluded = [*unjudged, *([response_schema_conformance] if streamed else [])]
    case.validate_response(response, excluded_checks=excluded)


@pytest.fixture(scope="module")
def staff(stack: Stack) -> Iterator[httpx.Client]:
    """One login for all: an account may have only so many in a minute."""
    with staff_of(stack) as client:
        yield client


@pytest.fixture
def trained(staff: httpx.Client) -> dict[str, str]:
    """Ids of a file, its example and a data set version of it."""
    line = f'{{"instruction": "What is {uuid4()}?", "output": "Random."}}'
    file = staff.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", line)}).json()["id"]
    made = staff.post("/api/v1/training/dataset-versions", json={"files": [file], "validation_share": 0})
    example = staff.get("/api/v1/training/examples").json()["results"][0]["id"]
    return {"file_id": file, "version_id": made.json()["id"], "example_id": example}


@SCHEMA.include(path_regex="/training/|/v1/files").parametrize()
@MANY
def test_staff_get_no_answer_that_is_not_documented(
    case: schemathesis.Case, stack: Stack, staff: httpx.Client, trained: dict[str, str], nightly: bool
) -> None:
    put_ids(case, trained)
    unjudged = not_judged(case, nightly)
    response = case.call(stack.web, headers={"Authorization": staff.headers["Authorization"]})
    case.validate_response(response, excluded_checks=unjudged)


@SCHEMA.parametrize()
@FEW
def test_without_a_token_nothing_but_registration_and_login_answers(
    case: schemathesis.Case, stack: Stack, nightly: bool
) -> None:
    response = case.call_and_validate(stack.web, excluded_checks=not_judged(case, nightly))
    assert case.path in PUBLIC or response.status_code in (401, 404, 413)


# --- what it does not think of ---


def raw(stack: Stack, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to bytes that no HTTP client would send."""
    with socket.create_connection((stack.host, stack.port), timeout=10) as connection:
        connection.sendall(request)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def message_of(learner: Learner, line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    token = learner.http.headers["Authorization"].encode()
    fixed = (b"Host: localhost", b"Connection: close", b"Authorization: " + token, b"Content-Type: application/json")
    return b"\r\n".join((line + b" HTTP/1.1", *fixed, *headers, b"", body))


@pytest.fixture
def messages(learner: Learner) -> Iterator[str]:
    """The URL of a new conversation's messages. In the end, neither a message nor a job may have come of the test."""
    url = learner.converse()
    yield url
    assert learner.http.get(url).json()["results"] == []
    assert learner.http.get("/api/v1/jobs").json()["results"] == []


@pytest.mark.parametrize(
    ("content", "headers", "status", "attr"),
    [
        (b'{"content": "\xff"}', {}, 400, None),
        (b'{"content": "caf\xe9"}', {"Content-Type": "application/json; charset=latin-1"}, 400, None),
        (rb'{"content": "a\u0000b"}', {}, 400, None),
        (rb'{"content": "a\ud800b"}', {}, 400, None),
        (b'{"content":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, 400, None),
        (b'{"content": "x", "seed": ' + b"9" * 5000 + b"}", {}, 400, None),
        (b'{"content": "x", "seed": ' + b"9" * 400 + b"}", {}, 400, "seed"),
        (b'{"content": "x", "temperature": ' + b"9" * 400 + b"}", {}, 400, "temperature"),
        (b'{"content": "x", "max_tokens": 1e300}', {}, 400, "max_tokens"),
        (b'{"content": "x", "colour": "red"}', {}, 400, "colour"),
        (b'{"content": "x", "content": ""}', {}, 400, "content"),
        (b'{"content": ""}', SSE, 400, "content"),
        (b'{"content": "x"}', {"Idempotency-Key": "k" * 10_000}, 400, "Idempotency-Key"),
        (b'{"content": "x"}', {"Idempotency-Key": "a\tb"}, 400, "Idempotency-Key"),
        (b'{"content": "' + b"x" * 3_000_000 + b'"}', SSE, 413, None),
        (b'{"content": "x"}', {"Content-Type": ""}, 415, None),
        (b'{"content": "x"}', {"Content-Type": "\xff\xfe"}, 415, None),
        (b"content=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415, None),
    ],
)
def test_a_bad_question_is_refused(
    learner: Learner, messages: str, content: bytes, headers: dict[str, str], status: int, attr: str | None
) -> None:
    encoded = {name: value.encode("latin-1") for name, value in {**JSON, **headers}.items()}
    response = learner.http.post(messages, content=content, headers=encoded)
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/json")
    assert [error["attr"] for error in response.json()["errors"]] == [attr]


def test_a_chunked_body_is_read_like_any_other(learner: Learner) -> None:
    messages = learner.converse()
    response = learner.http.post(messages, content=iter([b'{"content": ', b'"x", "max_tokens": 1}']), headers=JSON)
    assert response.status_code == 202
    response = learner.http.post("/v1/embeddings", content=iter([b'{"model": "embedding"}']), headers=JSON)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")
    response = learner.http.post(messages, content=(b" " * 2**16 for _ in range(40)), headers=JSON)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "headers",
    [
        (b"Content-Length: -1",),
        (b"Content-Length: 16", b"Content-Length: 17"),
        (b"Content-Length: 16", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: gzip",),
        (b"Content-Length: 16", b"Idempotency-Key: a\x00b"),
    ],
)
def test_a_question_that_is_not_http_is_refused(
    stack: Stack, learner: Learner, messages: str, headers: tuple[bytes, ...]
) -> None:
    line = f"POST {messages}".encode()
    assert raw(stack, message_of(learner, line, *headers, body=b'{"content": "x"}'))[0] == 400


def test_a_question_that_breaks_off_is_not_asked(stack: Stack, learner: Learner, messages: str) -> None:
    with socket.create_connection((stack.host, stack.port)) as connection:
        line = f"POST {messages}".encode()
        connection.sendall(message_of(learner, line, b"Content-Length: 20", body=b'{"content": "x"}'))
    assert learner.http.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /api/v1/jobs/\x00", 400),
        (b"GET /api/v1/jobs/\xff", 400),
        (b"GET /api/v1/jobs/%00", 404),
        (b"GET /api/v1/jobs/%ff", 404),
        (b"GET /v1/models/%00%ed%a0%80", 404),
        (b"GET /api/v1/jobs?cursor=%00", 200),
        (b"GET /api/v1/jobs?cursor=%ed%a0%80", 404),
        (b"GET /api/v1/jobs?cursor=" + b"x" * 60_000, 404),
        (b"BREW /api/v1/me", 400),
        (b"TRACE /api/v1/me", 405),
        (b"HEAD /api/v1/me", 200),
        (b"HEAD /v1/chat/completions", 405),
        (b"OPTIONS /api/v1/me", 200),
    ],
)
def test_an_odd_request_line_has_its_status(stack: Stack, learner: Learner, line: bytes, status: int) -> None:
    got, body = raw(stack, message_of(learner, line))
    assert got == status
    if status in (404, 405) and body:
        document = json.loads(body)
        assert "error" in document or document["errors"]


@pytest.mark.parametrize("token", [b"\xff\xfe\x80", "ключ".encode(), b"x" * 60_000, b"a, Bearer b"])
@pytest.mark.parametrize("path", ["/api/v1/me", "/v1/models"])
def test_a_token_of_odd_bytes_is_401(stack: Stack, path: str, token: bytes) -> None:
    response = httpx.get(f"{stack.web}{path}", headers={"Authorization": b"Bearer " + token})
    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    document = response.json()
    code = document["error"]["code"] if "error" in document else document["errors"][0]["code"]
    assert code in ("invalid_api_key", "authentication_failed")


def test_a_foreign_host_is_refused_in_json(stack: Stack) -> None:
    response = httpx.get(f"{stack.web}/api/v1/me", headers={"Host": "evil.example"})
    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, "parse_error")


@pytest.mark.parametrize("last", ["-1", "x", "1e9", "9" * 20, "0" * 9000, "\xff"])
def test_only_an_id_of_an_event_resumes_a_stream(learner: Learner, answered: dict[str, str], last: str) -> None:
    url = f"/api/v1/jobs/{answered['job_id']}/events"
    response = learner.http.get(url, headers={"Last-Event-ID": last.encode("latin-1"), **SSE})
    assert (response.status_code, response.json()["errors"][0]["attr"]) == (400, "Last-Event-ID")


def test_no_head_of_a_stream(learner: Learner) -> None:
    """It would hold the connection until the job's end."""
    job = learner.ask("Count to a thousand.", max_tokens=1000)
    assert learner.http.head(f"/api/v1/jobs/{job}/events", timeout=5).status_code == 405
    assert learner.http.post(f"/api/v1/jobs/{job}/cancel").json()["state"] == "cancelled"


def test_what_v1_does_not_know_it_ignores(learner: Learner) -> None:
    body = {"model": "embedding", "input": "x", "colour": "red", "user": None}
    assert learner.http.post("/v1/embeddings", json=body).status_code == 200
    response = learner.http.post("/v1/embeddings", json={**body, "input": {}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")


def test_a_stream_of_nothing_is_refused_in_json(learner: Learner) -> None:
    url = f"/api/v1/tutor/conversations/{uuid4()}/messages"
    response = learner.http.post(url, json={"content": "x"}, headers=SSE)
    assert (response.status_code, response.json()["errors"][0]["code"]) == (404, "not_found")
