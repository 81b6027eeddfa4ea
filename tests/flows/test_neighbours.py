"""Promise 0: whatever one learner sends, the others are answered soon, at the first attempt, and all stay ready."""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lyo import env
from lyo.stack import Stack
from tests.flows.learner import Learner
from tests.helpers import until

WORST_S = 20.0  # of a neighbour's short answer, on two cores that also run the attack


class Neighbour(threading.Thread):
    """Asks a short question again and again."""

    def __init__(self, web: str) -> None:
        super().__init__(daemon=True)
        self.learner = Learner(web)
        self.seconds: list[float] = []
        self.answers: list[httpx.Response] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.3):
            began = time.monotonic()
            self.answers.append(ask(self.learner, "What is 2 + 2?", max_tokens=8))
            self.seconds.append(time.monotonic() - began)

    def assert_undisturbed(self) -> None:
        self.over.set()
        self.join()
        assert [answer.status_code for answer in self.answers] == [200] * len(self.answers)
        assert max(self.seconds) < WORST_S
        jobs = self.learner.http.get("/api/v1/jobs", params={"page_size": 50}).json()["results"]
        assert {job["attempt"] for job in jobs} == {1}


def ask(learner: Learner, content: str, **fields: Any) -> httpx.Response:
    body = {"model": env.MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": content}], **fields}
    return learner.http.post("/v1/chat/completions", json=body)


def too_long(learner: Learner) -> list[httpx.Response]:
    """As long as a body may be, and as short as the web cannot tell that it does not fit."""
    texts = ["9f3a0c" * 310_000, "\u00e9\u20ac\U0001f600 " * 12_000, "a b " * 40_000, " x" * 60_000]
    return [ask(learner, text, n=4) for text in texts]


def blanks(learner: Learner) -> list[httpx.Response]:
    return [ask(learner, " " * 1_900_000), ask(learner, "\n" * 450_000 + "." + "\t" * 450_000)]


def many_messages(learner: Learner) -> list[httpx.Response]:
    messages = [{"role": role, "content": "word " * 90} for _ in range(1024) for role in ("user", "assistant")]
    return [learner.http.post("/v1/chat/completions", json={"model": env.MODEL, "messages": messages[:-1]})]


def large_embeddings(learner: Learner) -> list[httpx.Response]:
    return [learner.http.post("/v1/embeddings", json={"model": "all-MiniLM-L6-v2", "input": ["word " * 1400] * 64})]


def hostile_schemas(learner: Learner) -> list[httpx.Response]:
    """Each costs the compiler all that it may take, and is another one."""
    schemas = [
        {"type": "string", "pattern": f"^([a-z]{{1,99}}{secrets.token_hex(4)}){{1,99}}$"},
        {"type": "array", "items": {"multipleOf": 0.0007}, "minItems": 100 + secrets.randbelow(800)},
        {"type": "integer", "multipleOf": 600_011 + secrets.randbelow(1000)},
        {"enum": [secrets.token_hex(16) for _ in range(400)]},
    ]
    forms = [{"type": "json_schema", "json_schema": {"name": "a", "schema": schema}} for schema in schemas]
    return [ask(learner, "Answer.", response_format=form) for form in forms]


def odd_searches(learner: Learner) -> list[httpx.Response]:
    words = (" ".join(secrets.token_hex(4) for _ in range(111)) for _ in range(10))
    return [learner.http.get("/api/v1/search", params={"q": text}) for text in (*words, "a & ! | ( ) : *" * 60)]


def many_streams(learner: Learner) -> list[httpx.Response]:
    """More readers of one answer than are let in at once."""
    body = {"model": env.MODEL, "max_tokens": 300, "stream": True, "messages": [{"role": "user", "content": "Go on."}]}
    opened = []
    with contextlib.ExitStack() as stack:
        opened.append(stack.enter_context(learner.http.stream("POST", "/v1/chat/completions", json=body)))
        (job, *_) = stored(learner)
        url = f"/api/v1/jobs/{job['id']}/events"
        opened += [stack.enter_context(learner.http.stream("GET", url)) for _ in range(env.STREAMS_PER_USER + 9)]
    return opened


ATTACKS = [too_long, blanks, many_messages, large_embeddings, hostile_schemas, odd_searches, many_streams]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_neighbour_s_answers_come_soon_and_at_the_first_attempt(
    stack: Stack, attack: Callable[[Learner], list[httpx.Response]]
) -> None:
    neighbour = Neighbour(stack.web)
    neighbour.start()
    until(lambda: neighbour.answers, 60)
    attackers = [Learner(stack.web) for _ in range(3)]
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda a=attacker: answers.extend(attack(a))) for attacker in attackers]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    neighbour.assert_undisturbed()
    assert answers
    assert {answer.status_code for answer in answers} <= {200, 400, 429}
    until(lambda: httpx.get(f"{stack.web}/readyz", timeout=30).status_code == 200, 30)
    kept = [job for attacker in attackers for job in stored(attacker) if job["state"] in ("failed", "errored")]
    assert all(job["error"]["code"] == "context_length_exceeded" for job in kept)


def stored(learner: Learner) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = learner.http.get("/api/v1/jobs", params={"page_size": 50}).json()["results"]
    return jobs
