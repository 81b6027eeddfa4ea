"""`/v1/chat/completions`, seen by the official client and on the wire. The worker's part is played by the test."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from typing import Any

import httpx
import openai
import pytest

from apps.common import redis
from apps.jobs import relay
from apps.jobs.models import Job, State
from apps.jobs.services import job_cancel
from lyo import env
from tests.apps.conftest import PlayedWorker, Run
from tests.helpers import until

ASK: dict[str, Any] = {"model": env.MODEL, "messages": [{"role": "user", "content": "Is 4 even?"}]}
QUIZ = {"type": "object", "properties": {"übung": {"type": "string"}}}
TOKENS = ["Yes", ",\n\n", "2·2", " = 4 ", "✓ 👍", "\r\ndata: [DONE]\n\n", " so"]  # what framing might trip over
TEXT = "".join(TOKENS)
FINGERPRINT = "fp_" + sha256(b"0123456789abcdef ").hexdigest()[:12]  # of the digest, and of no adapter


def logprob(data: bytes, value: float, *top: dict[str, Any]) -> dict[str, Any]:
    """A `TokenLogprob` as a worker stores it."""
    return {"id": 5, "text": data.decode(errors="replace"), "bytes": list(data), "logprob": value, "top": list(top)}


LOGPROBS = [
    logprob(b"Yes", -0.25, logprob(b"Yes", -0.25), logprob(b"Ja", -1.5)),
    logprob(b"\xf0\x9f", -2.0, logprob(b"\xf0\x9f", -2.0)),
]
SHOWN = [
    {
        "token": "Yes",
        "logprob": -0.25,
        "bytes": [89, 101, 115],
        "top_logprobs": [
            {"token": "Yes", "logprob": -0.25, "bytes": [89, 101, 115]},
            {"token": "Ja", "logprob": -1.5, "bytes": [74, 97]},
        ],
    },
    {
        "token": "\ufffd",
        "logprob": -2.0,
        "bytes": [240, 159],
        "top_logprobs": [{"token": "\ufffd", "logprob": -2.0, "bytes": [240, 159]}],
    },
]


def answer(run: Run) -> None:
    run.answer(TOKENS)


def answer_with_seed(run: Run) -> None:
    """A text of its own for each seed, of as many tokens as the seed says."""
    run.answer([f"{run.request['sampling']['seed']} "] * run.request["sampling"]["seed"])


def answer_with_logprobs(run: Run) -> None:
    run.write("Yes", [LOGPROBS[0]])
    run.write("\ufffd", [LOGPROBS[1]])
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    run.succeed(text="Yes\ufffd", finish_reason="length", usage=usage, logprobs=LOGPROBS)


def data_lines(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream that ended as it should."""
    *lines, last = data_lines(response)
    assert last == "[DONE]"
    return [json.loads(line) for line in lines]


# --- the whole answer ---


def test_a_completion_has_openais_shape(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = answer
    response = http.post("/chat/completions", json=ASK)
    job = Job.objects.get()
    assert response.status_code == 200
    assert response.json() == {
        "id": f"chatcmpl-{job.id.hex}",
        "object": "chat.completion",
        "created": int(job.created_at.timestamp()),
        "model": env.MODEL,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 7,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_a_job_gets_what_was_asked(ai: openai.OpenAI, worker: PlayedWorker) -> None:
    worker.play = answer
    ai.chat.completions.create(
        model=env.MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": "Hi.", "name": "ada"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": ""},
        ],
        max_tokens=1,
        max_completion_tokens=11,
        temperature=0.5,
        top_p=0.9,
        stop=["\n", "END"],
        seed=-1,
        logprobs=True,
        top_logprobs=3,
        user="someone",
        store=False,
        metadata={"unknown": "fields are ignored"},
        tools=[],
        response_format={"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": QUIZ}},
        presence_penalty=-0.5,
        frequency_penalty=1,
        logit_bias={},
        extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1},
    )
    (job,) = worker.jobs
    assert (job.kind, job.queue, job.keep) == ("chat", "generate", False)
    assert job.deadline_at is not None
    assert (job.deadline_at - job.created_at).total_seconds() == pytest.approx(env.JOB_DEADLINE_S, abs=1)
    assert job.request == {
        "adapter": None,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": ""},
        ],
        "overflow": "refuse",
        "sampling": {
            "max_tokens": 11,
            "temperature": 0.5,
            "top_k": 40,
            "top_p": 0.9,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "presence_penalty": -0.5,
            "frequency_penalty": 1,
            "seed": 2**63 - 1,
            "stop": ["\n", "END"],
            "logprobs": 3,
            "json_schema": '{"type":"object","properties":{"übung":{"type":"string"}}}',
        },
    }


def test_what_is_not_asked_has_openais_defaults(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = answer
    nothing = dict.fromkeys(("max_tokens", "temperature", "top_p", "stop", "seed", "n", "logprobs", "stream", "tools"))
    assert http.post("/chat/completions", json={**ASK, **nothing}).status_code == 200
    assert http.post("/chat/completions", json={**ASK, "stop": "END"}).status_code == 200
    first, second = (job.request["sampling"] for job in worker.jobs)
    seeds = {first.pop("seed"), second.pop("seed")}
    assert len(seeds) == 2 and all(0 <= seed < 2**63 for seed in seeds)
    assert first == {
        "max_tokens": None,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "logprobs": None,
        "json_schema": None,
    }
    assert second["stop"] == ["END"]


@pytest.mark.parametrize(("kind", "schema"), [("text", None), ("json_object", '{"type":"object"}')])
def test_a_json_object_is_a_schema_of_its_own(
    ai: openai.OpenAI, worker: PlayedWorker, kind: Any, schema: str | None
) -> None:
    worker.play = answer
    ai.chat.completions.create(**ASK, response_format={"type": kind})
    assert worker.jobs[0].request["sampling"]["json_schema"] == schema


def test_n_choices_have_seeds_that_count_up_and_pay_for_one_prompt(ai: openai.OpenAI, worker: PlayedWorker) -> None:
    worker.play = answer_with_seed
    completion = ai.chat.completions.create(**ASK, n=3, seed=2)
    assert [(choice.index, choice.message.content) for choice in completion.choices] == [
        (0, "2 2 "),
        (1, "3 3 3 "),
        (2, "4 4 4 4 "),
    ]
    assert completion.usage is not None
    assert completion.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 7,
        "completion_tokens": 9,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_logprobs_have_openais_shape(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = answer_with_logprobs
    (choice,) = http.post("/chat/completions", json={**ASK, "logprobs": True, "top_logprobs": 2}).json()["choices"]
    assert choice["logprobs"] == {"content": SHOWN, "refusal": None}
    assert choice["finish_reason"] == "length"


# --- the stream ---


def test_a_stream_has_openais_chunks(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = answer
    response = http.post("/chat/completions", json={**ASK, "stream": True}, headers={"Accept": "text/event-stream"})
    job = Job.objects.get()
    head = {
        "id": f"chatcmpl-{job.id.hex}",
        "object": "chat.completion.chunk",
        "created": int(job.created_at.timestamp()),
        "model": env.MODEL,
    }
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-cache"
    deltas = [{"role": "assistant", "content": ""}, *({"content": text} for text in TOKENS), {}]
    assert chunks(response) == [
        {
            **head,
            "system_fingerprint": None if delta else FINGERPRINT,
            "choices": [
                {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None if delta else "stop"},
            ],
        }
        for delta in deltas
    ]


def test_the_official_client_reads_the_stream_as_the_whole(ai: openai.OpenAI, worker: PlayedWorker) -> None:
    worker.play = answer
    stream = ai.chat.completions.create(**ASK, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
    with ai.chat.completions.stream(**ASK) as events:
        final = events.get_final_completion()
    assert (final.choices[0].message.content, final.choices[0].finish_reason) == (TEXT, "stop")


def test_tokens_arrive_while_others_are_still_to_come(ai: openai.OpenAI, worker: PlayedWorker) -> None:
    go_on = threading.Event()

    def play(run: Run) -> None:
        run.write("first ")
        assert go_on.wait(10)
        run.write("second")
        run.succeed(text="first second", finish_reason="stop", usage={"prompt_tokens": 1, "completion_tokens": 2})

    worker.play = play
    stream = iter(ai.chat.completions.create(**ASK, stream=True))
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "first "]
    go_on.set()
    assert [chunk.choices[0].delta.content for chunk in stream] == ["second", None]


def test_usage_comes_last_where_it_is_asked_for(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = answer_with_seed
    body = {**ASK, "stream": True, "stream_options": {"include_usage": True}, "n": 2, "seed": 1}
    *earlier, last = chunks(http.post("/chat/completions", json=body))
    assert [chunk["usage"] for chunk in earlier] == [None] * len(earlier)
    assert (last["choices"], last["usage"]) == (
        [],
        {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 0}},
    )


def test_merged_choices_are_each_whole_and_in_order(http: httpx.Client, worker: PlayedWorker) -> None:
    together = threading.Barrier(3)

    def play(run: Run) -> None:
        seed = run.request["sampling"]["seed"]
        for i in range(20):
            together.wait(10)
            run.write(f"{seed}:{i} ")
        run.succeed(
            text="".join(f"{seed}:{i} " for i in range(20)),
            finish_reason="length",
            usage={"prompt_tokens": 1, "completion_tokens": 20},
        )

    worker.play = play
    told = chunks(http.post("/chat/completions", json={**ASK, "stream": True, "n": 3, "seed": 40}))
    for index in range(3):
        mine = [choice for chunk in told for choice in chunk["choices"] if choice["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in mine) == "".join(f"{40 + index}:{i} " for i in range(20))
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["length"]
    assert len({chunk["id"] for chunk in told}) == 1
    order = [chunk["choices"][0]["index"] for chunk in told]
    assert order != sorted(order)


def test_streamed_logprobs_are_those_of_the_whole(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = answer_with_logprobs
    body = {**ASK, "logprobs": True, "top_logprobs": 2, "stream": True}
    live = [chunk["choices"][0] for chunk in chunks(http.post("/chat/completions", json=body))]
    assert [(c["delta"].get("content"), c["logprobs"]) for c in live] == [
        ("", None),
        ("Yes", {"content": [SHOWN[0]], "refusal": None}),
        ("\ufffd", {"content": [SHOWN[1]], "refusal": None}),
        (None, None),
    ]


def test_logprobs_of_an_answer_that_is_over_come_from_its_row(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = answer_with_logprobs
    body, key = {**ASK, "logprobs": True, "top_logprobs": 2}, {"Idempotency-Key": "late"}
    assert http.post("/chat/completions", json=body, headers=key).status_code == 200
    repeat = [
        chunk["choices"][0]
        for chunk in chunks(http.post("/chat/completions", json={**body, "stream": True}, headers=key))
    ]
    assert "".join(c["delta"].get("content", "") for c in repeat) == "Yes\ufffd"
    assert [token for c in repeat for token in (c["logprobs"] or {"content": []})["content"]] == SHOWN


def test_a_silent_stream_is_kept_alive(
    http: httpx.Client, worker: PlayedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "KEEP_ALIVE_S", 0.1)
    go_on = threading.Event()

    def play(run: Run) -> None:
        assert go_on.wait(10)
        run.answer(TOKENS)

    worker.play = play
    with http.stream("POST", "/chat/completions", json={**ASK, "stream": True}) as response:
        lines = response.iter_lines()  # the headers are here before the first token
        assert any(line == ": keep-alive" for line in lines)
        go_on.set()
        assert "data: [DONE]" in list(lines)


# --- failures ---


@pytest.mark.parametrize(
    ("state", "code", "status", "param", "kind"),
    [
        (State.FAILED, "context_length_exceeded", 400, "messages", "invalid_request_error"),
        (State.FAILED, "unsupported_schema", 400, "response_format", "invalid_request_error"),
        (State.FAILED, "invalid_role", 400, None, "invalid_request_error"),
        (State.FAILED, "deadline_exceeded", 504, None, "server_error"),
        (State.FAILED, "remote_unavailable", 503, None, "server_error"),
        (State.FAILED, "adapters_full", 503, None, "server_error"),
        (State.ERRORED, "internal_error", 500, None, "server_error"),
        (State.ERRORED, "worker_lost", 500, None, "server_error"),
        (State.ERRORED, "lease_lost", 500, None, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_has_its_status(
    http: httpx.Client, worker: PlayedWorker, stream: bool, state: State, code: str, status: int, param: str, kind: str
) -> None:
    worker.play = lambda run: run.fail(code, "Why it failed.", state)
    response = http.post("/chat/completions", json={**ASK, "stream": stream}, headers={"Accept": "text/event-stream"})
    assert (response.status_code, response.headers.get("Retry-After")) == (status, "2" if status == 503 else None)
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == {"error": {"message": "Why it failed.", "type": kind, "param": param, "code": code}}


def test_messages_that_can_never_fit_are_refused_and_nothing_is_kept_of_them(http: httpx.Client) -> None:
    asked = {**ASK, "n": 4, "messages": [{"role": "user", "content": "many words " * 30_000}]}
    response = http.post("/chat/completions", json=asked, headers={"Idempotency-Key": "k"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert f"maximum context length is {env.CONTEXT_TOKENS} tokens" in error["message"]
    assert not Job.objects.exists()


def test_one_failed_choice_fails_the_completion(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = lambda run: (
        answer(run) if run.request["sampling"]["seed"] == 1 else run.fail("x", "No.", State.ERRORED)
    )
    assert http.post("/chat/completions", json={**ASK, "n": 2, "seed": 1}).status_code == 500


def test_a_failure_in_the_middle_is_the_last_event(ai: openai.OpenAI, http: httpx.Client, worker: PlayedWorker) -> None:
    def play(run: Run) -> None:
        run.write("Yes")
        run.fail("internal_error", "The worker failed.", State.ERRORED)

    worker.play = play
    lines = data_lines(http.post("/chat/completions", json={**ASK, "stream": True}))
    assert [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "Yes"},
    ]
    error = {"message": "The worker failed.", "type": "server_error", "param": None, "code": "internal_error"}
    assert json.loads(lines[-1]) == {"error": error}
    with pytest.raises(openai.APIError, match=r"The worker failed\."):
        list(ai.chat.completions.create(**ASK, stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_somebody_cancels_says_so(http: httpx.Client, worker: PlayedWorker, stream: bool) -> None:
    def play(run: Run) -> None:
        job_cancel(job=run.claim.job)

    worker.play = play
    response = http.post("/chat/completions", json={**ASK, "stream": stream})
    assert (response.status_code, response.json()["error"]["code"]) == (499, "cancelled")


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_no_longer_counts_as_a_reader(
    http: httpx.Client, worker: PlayedWorker, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(relay, "READER_TTL_S", 2)
    hung_up, lapsed = threading.Event(), threading.Event()

    def play(run: Run) -> None:
        while not run.is_read:
            run.write("a")
        assert hung_up.wait(10)
        deadline = time.monotonic() + 6
        while run.is_read and time.monotonic() < deadline:
            time.sleep(0.1)
            run.write("b")
        if not run.is_read:
            lapsed.set()
        run.succeed(text="", finish_reason="stop", usage={"prompt_tokens": 1, "completion_tokens": 1})

    worker.play = play
    if stream:
        with http.stream("POST", "/chat/completions", json={**ASK, "stream": True}) as response:
            assert next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/chat/completions", json=ASK, timeout=0.5)
    hung_up.set()
    assert lapsed.wait(8)


# --- once and only once ---


def test_a_repeat_gets_the_same_completion(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = answer_with_seed
    body, key = {**ASK, "n": 2, "seed": 1}, {"Idempotency-Key": "k" * 200}
    first = http.post("/chat/completions", json=body, headers=key)
    second = http.post("/chat/completions", json=body, headers=key)
    assert first.status_code == 200
    assert second.json() == first.json()
    assert Job.objects.count() == 2
    assert all(job.keep for job in worker.jobs)
    streamed = chunks(http.post("/chat/completions", json={**body, "stream": True}, headers=key))
    assert {chunk["id"] for chunk in streamed} == {first.json()["id"]}
    other = http.post("/chat/completions", json={**body, "n": 3}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert Job.objects.count() == 2


def test_of_two_repeats_at_once_one_makes_the_jobs(http: httpx.Client, worker: PlayedWorker) -> None:
    worker.play = answer
    with ThreadPoolExecutor(4) as pool:
        ask = partial(http.post, "/chat/completions", json={**ASK, "n": 2}, headers={"Idempotency-Key": "twice"})
        responses = [future.result() for future in [pool.submit(ask) for _ in range(4)]]
    assert [response.status_code for response in responses] == [200] * 4
    assert len({response.text for response in responses}) == 1
    assert Job.objects.count() == 2


def test_past_the_share_of_one_user_it_says_when_to_come_back(
    http: httpx.Client, ai: openai.OpenAI, worker: PlayedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "GENERATIONS_AT_ONCE", 2)
    response = http.post("/chat/completions", json={**ASK, "n": 3})
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) >= 1
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    with pytest.raises(openai.RateLimitError):
        ai.chat.completions.create(**ASK, n=3)
    assert Job.objects.count() == 0


def test_a_full_queue_tells_the_position(
    http: httpx.Client, worker: PlayedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "QUEUE_LIMIT", 0)
    response = http.post("/chat/completions", json=ASK)
    assert (response.status_code, response.json()["error"]["queue_position"]) == (429, 1)


def test_waiting_holds_no_database_connection(
    http: httpx.Client, worker: PlayedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More open requests than the pool has connections, and still room for one that needs the database."""
    monkeypatch.setattr(env, "GENERATIONS_AT_ONCE", 100)
    monkeypatch.setattr(env, "STREAMS_PER_USER", 100)
    count = env.DATABASE_POOL + 8
    go_on = threading.Event()

    def play(run: Run) -> None:
        assert go_on.wait(15)
        answer(run)

    worker.play = play
    with ThreadPoolExecutor(count) as pool:
        responses = [pool.submit(http.post, "/chat/completions", json=ASK) for _ in range(count)]
        until(lambda: len(worker.jobs) == count)
        readers = partial(redis.broker().exists, *(f"lyo:stream:{job.id}:reader" for job in worker.jobs))
        until(lambda: readers() == count)
        assert http.get("/models").status_code == 200
        go_on.set()
        assert [response.result().status_code for response in responses] == [200] * count
