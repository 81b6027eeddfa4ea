"""`/v1/embeddings`. The worker's part is played by the test."""

import base64
import struct
from typing import Any

import httpx
import openai
import pytest

from apps.jobs.models import Job, State
from tests.apps.conftest import PlayedWorker, Run

VECTORS = [[i / 4 + j / 512 for j in range(384)] for i in range(3)]  # exact in float32
PACKED = [base64.b64encode(struct.pack("<384f", *vector)).decode() for vector in VECTORS]


def embed(run: Run) -> None:
    run.succeed(vectors=PACKED[: len(run.request["input"])], tokens=12)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [({}, VECTORS), ({"encoding_format": "float"}, VECTORS), ({"encoding_format": "base64"}, PACKED)],
)
def test_embeddings_have_openais_shape(
    http: httpx.Client, worker: PlayedWorker, encoding: dict[str, str], shown: list[Any]
) -> None:
    worker.play = embed
    response = http.post("/embeddings", json={"model": "embedding", "input": ["a", "b"], **encoding})
    assert response.status_code == 200
    assert response.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": shown[0]},
            {"object": "embedding", "index": 1, "embedding": shown[1]},
        ],
        "model": "embedding",
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
    }
    (job,) = worker.jobs
    assert (job.kind, job.queue, job.request) == ("embed", "embed", {"input": ["a", "b"]})


@pytest.mark.parametrize("model", ["embedding", "all-MiniLM-L6-v2"])
def test_the_official_client_gets_numbers(ai: openai.OpenAI, worker: PlayedWorker, model: str) -> None:
    worker.play = embed
    (one,) = ai.embeddings.create(model=model, input="photosynthesis", dimensions=384).data
    assert one.embedding == VECTORS[0]
    assert worker.jobs[0].request == {"input": ["photosynthesis"]}


def test_a_repeat_gets_the_same_embedding(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = embed
    body, key = {"model": "embedding", "input": "a"}, {"Idempotency-Key": "once"}
    first = http.post("/embeddings", json=body, headers=key)
    assert http.post("/embeddings", json=body, headers=key).json() == first.json()
    assert http.post("/embeddings", json={**body, "input": "b"}, headers=key).status_code == 409
    assert Job.objects.count() == 1


def test_a_crash_is_a_500(ai: openai.OpenAI, worker: PlayedWorker) -> None:
    worker.play = lambda run: run.fail("internal_error", "The worker failed.", State.ERRORED)
    with pytest.raises(openai.InternalServerError, match=r"The worker failed\."):
        ai.embeddings.create(model="embedding", input="a")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", None),
        ("input", ""),
        ("input", []),
        ("input", 5),
        ("input", "x" * 32_001),
        ("input", ["a"] * 257),
        ("encoding_format", "int8"),
        ("dimensions", 256),
        ("dimensions", "384"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, transactional_db: None, field: str, value: Any) -> None:
    response = http.post("/embeddings", json={"model": "embedding", "input": "a", field: value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    assert Job.objects.count() == 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("x" * 32_001, "input: Ensure this field has no more than 32000 characters; it has 32001."),
        (["a"] * 300, "input: Ensure this field has no more than 256 elements; it has 300."),
    ],
)
def test_what_is_too_long_is_told_what_was_sent_and_what_fits(
    http: httpx.Client, transactional_db: None, texts: Any, message: str
) -> None:
    error = http.post("/embeddings", json={"model": "embedding", "input": texts}).json()["error"]
    assert error["message"] == message


def test_tokens_are_refused_by_name(http: httpx.Client, transactional_db: None) -> None:
    error = http.post("/embeddings", json={"model": "embedding", "input": [15, 27]}).json()["error"]
    assert (error["param"], error["message"]) == ("input.0", "input.0: Must be a string; tokens are not supported.")
