"""The real ASGI application behind a real socket, and a worker whose part the test itself plays."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
import uvicorn
from asgiref.sync import async_to_sync
from django.db import connection
from django.utils import timezone
from rest_framework.test import APIClient

from apps.common import redis
from apps.jobs import dispatch, services, streams
from apps.jobs.models import Job, State
from apps.users.models import User
from apps.users.services import token_create
from lyo.asgi import application
from lyo.http import Protocol
from tests.helpers import until

PASSWORD = "correct-horse-9-battery"


@pytest.fixture
def learner(transactional_db: None) -> User:
    return User.objects.create_user("ada", "ada@example.org", PASSWORD)


def establish(*names: str) -> None:
    """Make these users old and active enough to count among the several that a signal takes; without names, all."""
    users = User.objects.filter(username__in=names) if names else User.objects.all()
    users.update(established_at=timezone.now())


def exported(client: APIClient) -> dict[str, Any]:
    """What `GET /me/export` sends the client."""
    answer = client.get("/api/v1/me/export")
    assert answer.status_code == 200

    async def read() -> bytes:
        return b"".join([part async for part in answer.streaming_content])

    whole: dict[str, Any] = json.loads(async_to_sync(read)())
    return whole


@pytest.fixture
def token(learner: User) -> str:
    """A bearer token of `learner`'s."""
    return token_create(user=learner)[1]


@contextmanager
def serving() -> Iterator[uvicorn.Server]:
    """The application under uvicorn, on a thread; stopped in the end as by SIGTERM."""
    config = uvicorn.Config(
        application, port=0, http=Protocol, lifespan="off", log_level="warning", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="live server")
    thread.start()
    until(lambda: server.started)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def url_of(server: uvicorn.Server) -> str:
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@pytest.fixture(scope="session")
def live(django_db_setup: None) -> Iterator[str]:
    """The base URL of the application; its requests see what tests of `transactional_db` commit."""
    with serving() as server:
        yield url_of(server)


@dataclass
class Run:
    """A claimed job in the hands of a test. `is_read`: whether somebody was reading at the last write."""

    claim: services.Claim
    offset: int = 0
    tokens: int = 0
    is_read: bool = False

    @property
    def request(self) -> dict[str, Any]:
        request: dict[str, Any] = self.claim.job.request
        return request

    def write(self, text: str, logprobs: list[dict[str, Any]] | None = None) -> None:
        """Deliver one token."""
        entry = streams.Entry(self.offset, self.offset + len(text), [self.tokens], text, logprobs)
        pipe = redis.broker().pipeline()
        streams.append(pipe, self.claim.job.id, self.claim.job.attempt, entry)
        ((self.offset, read),) = pipe.execute()
        self.tokens += 1
        self.is_read = bool(read)

    def succeed(self, **result: Any) -> None:
        services.job_finish(claim=self.claim, state=State.SUCCEEDED, result=result)

    def answer(self, tokens: Iterable[str], finish_reason: str = "stop", prompt_tokens: int = 7, **result: Any) -> None:
        """Deliver `tokens` and finish as the `generate` task does."""
        tokens = list(tokens)
        for text in tokens:
            self.write(text)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(tokens),
            "total_tokens": prompt_tokens + len(tokens),
        }
        base = {"text": "".join(tokens), "finish_reason": finish_reason, "usage": usage}
        self.succeed(**base, model="gemma", model_digest="0123456789abcdef", adapter=None, **result)

    def fail(self, code: str, detail: str, state: State = State.FAILED) -> None:
        services.job_finish(claim=self.claim, state=state, error={"code": code, "detail": detail})


class PlayedWorker:
    """Claims every job as soon as it is sent, on a thread of its own, and does with it what `play` says."""

    def __init__(self) -> None:
        self.play: Callable[[Run], None] | None = None  # None leaves the jobs queued
        self.jobs: list[Job] = []
        self.errors: list[Exception] = []
        self.threads: list[threading.Thread] = []

    def send(self, jobs: Iterable[tuple[str, UUID]]) -> bool:
        if self.play is not None:
            for _, job_id in jobs:
                self.threads.append(threading.Thread(target=self._run, args=[job_id]))
                self.threads[-1].start()
        return True

    def join(self) -> None:
        """Wait for the jobs that were sent; raises what `play` raised."""
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _run(self, job_id: UUID) -> None:
        try:
            claim = services.job_claim(job_id=job_id, worker="played")
            assert claim is not None and self.play is not None
            self.jobs.append(claim.job)
            connection.close()
            self.play(Run(claim))
        except Exception as error:
            self.errors.append(error)
        finally:
            connection.close()


@pytest.fixture
def worker(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedWorker]:
    worker = PlayedWorker()
    monkeypatch.setattr(dispatch, "send", worker.send)
    yield worker
    worker.join()
