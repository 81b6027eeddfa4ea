"""A whole Lyo of its own: real servers, web, workers and Gemma in float32, in which answers are exact."""

from collections.abc import Iterator

import httpx
import psycopg
import pytest

from lyo import embedded, env
from lyo.stack import Stack
from tests.flows.learner import Learner

READER_GRACE_S = 3
STALL_S = 20


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    lines: list[str] = []
    stack = Stack(
        env.BASE_DIR / ".lyo" / "flows",
        say=lambda name, line: lines.append(f"{name} | {line}"),
        extra={
            "LYO_DTYPE": "float32",
            "LYO_GENERATE_THREADS": "24",  # twenty streams fill them, so that more jobs wait as messages in Redis
            "LYO_ANONYMOUS_PER_MINUTE": "100000",
            "LYO_GENERATIONS_AT_ONCE": "64",
            "LYO_GENERATIONS_PER_MINUTE": "100000",
            "LYO_REGISTRATIONS_PER_MINUTE": "100000",
            "LYO_REQUESTS_PER_MINUTE": "100000",
            "LYO_READER_GRACE_S": str(READER_GRACE_S),
            "LYO_STALL_S": str(STALL_S),
        },
    )
    try:
        with stack:
            without_tutor(stack)
            yield stack
    finally:
        (stack.home / "log.txt").write_text("\n".join(lines))


def without_tutor(stack: Stack) -> None:
    """Let the base model answer conversations: it goes on until it is stopped, which these flows need.

    No call does that, for learners would be answered with noise.
    """
    with psycopg.connect(embedded.read_local(stack.home)["database_url"]) as database:
        database.execute("UPDATE inference_route SET live_id = NULL")
    route = staff_of(stack).get("/api/v1/training/routes/tutoring").raise_for_status()
    assert route.json()["live"] is None


def staff_of(stack: Stack) -> httpx.Client:
    """The API as the administrator uses it."""
    login = httpx.post(f"{stack.web}/api/v1/auth/login", json=stack.admin).raise_for_status()
    return httpx.Client(base_url=stack.web, headers={"Authorization": f"Bearer {login.json()['token']}"}, timeout=60)


@pytest.fixture
def learner(stack: Stack) -> Learner:
    return Learner(stack.web)
