"""Promise 1 and 2: whatever is killed, every accepted job ends, and every stream ends once and whole."""

import os
import signal
import time
from itertools import accumulate

import httpx
import pytest

from lyo.stack import Stack
from tests.flows.conftest import READER_GRACE_S
from tests.flows.learner import Answer, Learner
from tests.helpers import frozen, until

QUESTIONS = [f"Tell a story about {number} rivers and a mill." for number in range(1, 21)]
TOKENS = 64


@pytest.fixture(scope="module")
def undisturbed(stack: Stack) -> list[str]:
    """The greedy answers to QUESTIONS when nothing happens."""
    answers = [Answer() for _ in QUESTIONS]
    Learner(stack.web).stream_all(QUESTIONS, answers, max_tokens=TOKENS).shutdown()
    assert [end for answer in answers for end, _ in answer.ends] == ["done"] * len(answers)
    return [answer.text for answer in answers]


@pytest.fixture(scope="module")
def restart_s(stack: Stack) -> float:
    """How long this machine takes from an idle worker's death to an answer of its successor."""
    learner = Learner(stack.web)
    began = time.monotonic()
    stack.supervisor.kill("generate")
    job = learner.ask("Is anybody there?", max_tokens=2)
    until(lambda: learner.job(job)["state"] == "succeeded", 120)
    return time.monotonic() - began


def assert_whole(answers: list[Answer], expected: list[str]) -> None:
    """One `done` each; the text is the stored one and the undisturbed one; offsets count it without gap or repeat."""
    for answer, text in zip(answers, expected, strict=True):
        assert [event for event, _ in answer.ends] == ["done"], answer.ends
        assert answer.text == answer.ends[0][1]["message"]["content"]
        assert answer.text == text
        assert answer.offsets == sorted(set(answer.offsets))
        assert answer.offsets[-1] == len(answer.text)


def in_the_middle(answers: list[Answer]) -> bool:
    return all(len(answer.offsets) >= 5 for answer in answers) and not any(answer.ends for answer in answers)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_loses_no_token_of_twenty_streams(
    stack: Stack, learner: Learner, undisturbed: list[str], restart_s: float, end: signal.Signals
) -> None:
    answers = [Answer() for _ in QUESTIONS]
    pool = learner.stream_all(QUESTIONS, answers, max_tokens=TOKENS)
    until(lambda: in_the_middle(answers), 60)
    stack.supervisor.kill("generate", end)
    pool.shutdown()
    assert_whole(answers, undisturbed)
    assert max(answer.longest_gap for answer in answers) < 1.5 * restart_s + 5


@pytest.mark.parametrize("server", ["redis-broker", "postgres"])
def test_a_killed_server_loses_no_accepted_job(
    stack: Stack, learner: Learner, undisturbed: list[str], server: str
) -> None:
    """Streams are read through the outage, and jobs accepted before it wait behind them."""
    answers = [Answer() for _ in QUESTIONS]
    pool = learner.stream_all(QUESTIONS, answers, max_tokens=TOKENS)
    until(lambda: in_the_middle(answers), 60)
    accepted = [learner.ask(question, max_tokens=8) for question in QUESTIONS]
    stack.supervisor.kill(server, signal.SIGKILL)
    pool.shutdown()
    assert_whole(answers, undisturbed)

    def states() -> set[str]:
        return {learner.job(job)["state"] for job in accepted}

    until(lambda: states() == {"succeeded"}, 60)
    for job, text in zip(accepted, undisturbed, strict=True):
        assert text.startswith(learner.job(job)["result"]["text"])


def test_work_that_comes_while_redis_is_frozen_is_accepted_and_done_later(stack: Stack, learner: Learner) -> None:
    pids = [stack.supervisor.pids()[name] for name in ("redis-broker", "redis-cache")]
    try:
        [os.kill(pid, signal.SIGSTOP) for pid in pids]
        started = time.monotonic()
        assert learner.http.get("/api/v1/me").status_code == 200
        job = learner.ask("Is anybody there?", max_tokens=4)
        assert learner.job(job)["state"] == "queued"
        assert time.monotonic() - started < 20
    finally:
        [os.kill(pid, signal.SIGCONT) for pid in pids]
    until(lambda: learner.job(job)["state"] == "succeeded", 60)


def test_while_postgres_is_away_requests_get_503_and_then_all_is_well_again(stack: Stack, learner: Learner) -> None:
    pid = stack.supervisor.pids()["postgres"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: stack.supervisor.pids().get("postgres") != pid, 30)  # its children outlive it for some milliseconds
    seen: dict[int, httpx.Response] = {}

    def recovered() -> bool:
        response = learner.http.get("/api/v1/me")
        seen[response.status_code] = response
        return response.status_code == 200

    until(recovered, 60)
    assert set(seen) <= {200, 503}
    if refused := seen.get(503):
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.json()["errors"][0]["code"] == "service_unavailable"


def test_while_postgres_is_frozen_requests_get_503_in_bounded_time_and_then_all_is_well_again(
    stack: Stack, learner: Learner
) -> None:
    assert learner.http.get("/api/v1/me").status_code == 200
    with frozen(stack.supervisor.pids()["postgres"]):
        started = time.monotonic()
        refused = learner.http.get("/api/v1/me", timeout=60)
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (503, "service_unavailable")
        assert time.monotonic() - started < 25
        assert httpx.get(f"{stack.web}/livez").status_code == 200
    until(lambda: learner.http.get("/api/v1/me", timeout=60).status_code == 200, 60)
    job = learner.ask("Is anybody there?", max_tokens=4)
    until(lambda: learner.job(job)["state"] == "succeeded", 60)


def test_an_answer_that_nobody_reads_any_more_is_given_up_and_what_was_said_is_kept(learner: Learner) -> None:
    answer = Answer()
    body = {"content": "Count to a thousand.", "max_tokens": 1500, "temperature": 0}
    url = learner.converse()
    with learner.http.stream("POST", url, json=body, headers={"Accept": "text/event-stream"}) as response:
        learner.read(response, answer, stop_after=5)
    job = learner.http.get("/api/v1/jobs").json()["results"][0]["id"]
    until(lambda: learner.job(job)["state"] == "cancelled", READER_GRACE_S + 12)
    content = learner.http.get(url).json()["results"][1]["content"]
    assert content.startswith(answer.text)
    assert learner.job(job)["result"]["text"] == content


def test_an_accepted_answer_that_nobody_reads_goes_on(learner: Learner) -> None:
    job = learner.ask("Count to a hundred.", max_tokens=150)
    until(lambda: learner.job(job)["state"] == "succeeded", 60)
    assert learner.job(job)["result"]["usage"]["completion_tokens"] == 150


def test_a_dropped_stream_resumes_where_it_was(learner: Learner) -> None:
    job = learner.ask("Name the planets.", max_tokens=40)
    first, rest, late = Answer(), Answer(), Answer()
    url = f"/api/v1/jobs/{job}/events"
    with learner.http.stream("GET", url) as response:
        learner.read(response, first, stop_after=7)
    with learner.http.stream("GET", url, headers={"Last-Event-ID": str(first.offsets[-1])}) as response:
        learner.read(response, rest)
    with learner.http.stream("GET", url) as response:
        learner.read(response, late)
    assert first.text + rest.text == late.text == learner.job(job)["result"]["text"]
    assert [event for event, _ in rest.ends] == ["done"]
    assert list(accumulate(map(len, [first.text, rest.text])))[-1] == rest.offsets[-1]


def test_a_running_answer_is_cancelled_between_two_tokens(learner: Learner) -> None:
    answer = Answer()
    pool = learner.stream_all(["Count to a thousand."], [answer], max_tokens=1500)
    until(lambda: len(answer.offsets) >= 5, 60)
    job = learner.http.get("/api/v1/jobs").json()["results"][0]["id"]
    assert learner.http.post(f"/api/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    pool.shutdown()
    assert [event for event, _ in answer.ends] == ["cancelled"]
    assert learner.job(job)["result"]["text"] == answer.text
