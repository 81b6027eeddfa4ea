"""Models, and every way to be refused: OpenAI's form, the right status, the field's name, and nothing changed."""

from datetime import UTC, datetime
from typing import Any
from unittest.mock import AsyncMock, Mock

import httpx
import openai
import pytest
from django.core.management.sql import emit_post_migrate_signal
from django.db import OperationalError

from apps.common.throttles import GenerationThrottle
from apps.inference import completions, services
from apps.inference.models import SettledModel
from apps.inference.services import models_register
from apps.jobs.models import Job
from lyo import env

ASK: dict[str, Any] = {"model": env.MODEL, "messages": [{"role": "user", "content": "Is 4 even?"}]}
DEFAULT = {"id": env.MODEL, "object": "model", "owned_by": "lyo", "max_model_len": env.CONTEXT_TOKENS}
TUTOR, EMBEDDER = {**DEFAULT, "id": "tutor"}, {**DEFAULT, "id": "all-MiniLM-L6-v2", "max_model_len": 256}

pytestmark = pytest.mark.django_db(transaction=True)


def refused(response: httpx.Response) -> tuple[int, str | None, str | None]:
    """Status, param and code of a response that is an error in OpenAI's form, and made no job."""
    assert response.headers["Content-Type"] == "application/json"
    (error,) = response.json().values()
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["type"] == ("requests" if response.status_code == 429 else "invalid_request_error")
    assert error["message"]
    assert Job.objects.count() == 0
    return response.status_code, error["param"], error["code"]


def response_format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


SCHEMA = "response_format.json_schema.schema"


@pytest.fixture
def registered() -> dict[str, int]:
    """When the models of the settings were registered, as a test would have it: each a day apart."""
    SettledModel.objects.all().delete()
    models_register()
    names = (env.MODEL, "tutor", "all-MiniLM-L6-v2")
    days = {name: datetime(2026, 3, day, tzinfo=UTC) for day, name in enumerate(names, 1)}
    for name, day in days.items():
        SettledModel.objects.filter(name=name).update(created_at=day)
    models_register()  # a later migration leaves them as they are
    return {name: int(day.timestamp()) for name, day in days.items()}


def test_models_are_listed_the_default_first(ai: openai.OpenAI, http: httpx.Client, registered: dict[str, int]) -> None:
    """Each with when it was registered and how much it can take."""
    default, tutor, embedder = ({**model, "created": registered[model["id"]]} for model in (DEFAULT, TUTOR, EMBEDDER))
    assert http.get("/models").json() == {"object": "list", "data": [default, tutor, embedder]}
    assert [model.id for model in ai.models.list()] == [env.MODEL, "tutor", "all-MiniLM-L6-v2"]
    assert ai.models.retrieve(env.MODEL).id == env.MODEL
    assert http.get("/models/embedding").json() == embedder


def test_a_migrated_database_knows_since_when_its_models_are_served() -> None:
    """`flush`, which ends the tests before this one, says so as `migrate` does."""
    emit_post_migrate_signal(verbosity=0, interactive=False, db="default")
    assert set(SettledModel.objects.values_list("name", flat=True)) == {env.MODEL, "tutor", EMBEDDER["id"]}


def test_unknown_models_are_not_found(ai: openai.OpenAI, http: httpx.Client) -> None:
    assert refused(http.get("/models/ft:gemma:x@1/y")) == (404, "model", "model_not_found")
    assert refused(http.post("/chat/completions", json={**ASK, "model": "gpt-4"})) == (404, "model", "model_not_found")
    for url, model in (("/chat/completions", "embedding"), ("/embeddings", env.MODEL)):
        body = {**ASK, "input": "x", "model": model}
        assert refused(http.post(url, json=body)) == (404, "model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    "authorization", [None, "Bearer nope", "Bearer", "Bearer a b", b"Bearer \xff\xfe", "Basic eDp5"]
)
@pytest.mark.parametrize("path", ["/models", "/chat/completions", "/embeddings"])
def test_without_a_good_token_it_is_401(live: str, path: str, authorization: Any) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    response = httpx.request("GET" if path == "/models" else "POST", f"{live}/v1{path}", headers=headers)
    assert refused(response) == (401, None, "invalid_api_key")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [*ASK["messages"], {"role": "user", "content": 5}]}, "messages.1.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages.0.role"),
        ({"messages": ASK["messages"] * 2049}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "16"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": env.CONTEXT_TOKENS + 1}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, f"{SCHEMA[:-6]}name"),
        (response_format(None), SCHEMA),
        (response_format("{}"), SCHEMA),
        (response_format(True), SCHEMA),
        (response_format({"enum": ["x" * 20_000]}), SCHEMA),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop.1"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"n": 0}, "n"),
        ({"n": env.GENERATIONS_AT_ONCE + 1}, "n"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": "usage"}, "stream_options"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, changes: dict[str, Any], param: str) -> None:
    status, named, _ = refused(http.post("/chat/completions", json={**ASK, **changes}))
    assert (status, named) == (400, param)


@pytest.mark.parametrize(
    ("name", "tokens", "param"),
    [
        ("max_tokens", env.CONTEXT_TOKENS, "messages"),
        ("max_completion_tokens", env.CONTEXT_TOKENS, "messages"),
        ("max_tokens", env.CONTEXT_TOKENS + 1, "max_tokens"),
        ("max_completion_tokens", 10**9, "max_completion_tokens"),
    ],
)
def test_an_answer_that_can_never_fit_is_refused_before_a_job_is_made(
    http: httpx.Client, name: str, tokens: int, param: str
) -> None:
    response = http.post("/chat/completions", json={**ASK, name: tokens, "n": 2})
    assert refused(response) == (400, param, "context_length_exceeded")
    message = response.json()["error"]["message"]
    assert f"maximum context length is {env.CONTEXT_TOKENS} tokens" in message
    assert f"an answer of {tokens} is asked for." in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("audio", {"voice": "alloy", "format": "mp3"}),
        ("modalities", ["text", "audio"]),
        ("logit_bias", {"50256": -100}),
        ("web_search_options", {}),
    ],
)
def test_what_would_change_the_answer_is_not_ignored(http: httpx.Client, name: str, value: Any) -> None:
    assert refused(http.post("/chat/completions", json={**ASK, name: value})) == (400, name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, '["not"]'),
        ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, '["uniqueItems"]'),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "strin"}, "strin"),
        ({"$ref": "#/$defs/gone"}, "/$defs/gone"),
        ({"enum": []}, "Unsatisfiable"),
        ({"minimum": 10**400}, "number out of range"),
    ],
)
def test_what_a_schema_cannot_have_is_named(http: httpx.Client, schema: Any, fault: str) -> None:
    response = http.post("/chat/completions", json={**ASK, **response_format(schema)})
    assert refused(response) == (400, SCHEMA, "unsupported_schema")
    assert fault in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b"", "application/json", (400, "model")),
        (b"{", "application/json", (400, None)),
        (b"[]", "application/json", (400, None)),
        (b'{"model": "\xff"}', "application/json", (400, None)),
        (b'{"model": "\\u0000"}', "application/json", (400, None)),
        (b"model=x", "application/x-www-form-urlencoded", (415, None)),
        (b" " * (env.MAX_BODY_MB * 2**20 + 1), "application/json", (413, None)),
    ],
)
def test_broken_bodies(http: httpx.Client, content: bytes, content_type: str, expected: tuple[int, str | None]) -> None:
    headers = {"Content-Type": content_type, "Accept": "text/event-stream"}
    status, param, _ = refused(http.post("/chat/completions", content=content, headers=headers))
    assert (status, param) == expected


def test_a_bad_idempotency_key_is_named(http: httpx.Client) -> None:
    response = http.post("/chat/completions", json=ASK, headers={"Idempotency-Key": "k" * 201})
    assert refused(response)[:2] == (400, "Idempotency-Key")


def test_wrong_methods_and_paths(http: httpx.Client) -> None:
    assert refused(http.get("/chat/completions"))[0] == 405
    assert refused(http.post("/completions", json={}))[0] == 404


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [(OperationalError("gone"), 503, "service_unavailable"), (KeyError("a bug"), 500, "error")],
)
def test_our_own_faults_are_in_the_same_form(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, fault: Exception, status: int, code: str
) -> None:
    monkeypatch.setattr(services, "chat_create", Mock(side_effect=fault))
    response = http.post("/chat/completions", json=ASK)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers.get("Retry-After") == ("2" if status == 503 else None)


def test_a_fault_while_waiting_is_in_the_same_form(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "chat_completion", AsyncMock(side_effect=KeyError("a bug")))
    response = http.post("/chat/completions", json=ASK)
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")


def test_too_many_a_minute_says_when_to_come_back(
    http: httpx.Client, ai: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GenerationThrottle, "bucket", type(GenerationThrottle.bucket)("few", 2))
    for _ in range(2):
        assert http.post("/chat/completions", json={}).status_code == 400
    response = http.post("/chat/completions", json=ASK)
    assert refused(response) == (429, None, "rate_limit_exceeded")
    assert 1 <= int(response.headers["Retry-After"]) <= 30
    with pytest.raises(openai.RateLimitError):
        ai.chat.completions.create(**ASK)
    assert http.get("/models").status_code == 200
