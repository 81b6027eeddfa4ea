"""What learners do changes their feeds soon, whoever is killed; and without Redis there still are feeds."""

import os
import signal
import time

import httpx
import pytest

from lyo.stack import Stack
from tests.flows.learner import Learner
from tests.helpers import until

FEED = "/api/v1/feed"


def feed(learner: Learner) -> tuple[str, list[str]]:
    """What the feed says of itself, and the ids of its items."""
    response = learner.http.get(FEED, params={"page_size": 50}).raise_for_status()
    return response.headers["X-Lyo-Feed"], [entry["item"]["id"] for entry in response.json()["results"]]


def completes(learner: Learner, item: str) -> httpx.Response:
    event = {"item": item, "type": "complete", "client_id": item}
    return learner.http.post(f"{FEED}/events", json={"events": [event]}).raise_for_status()


@pytest.fixture
def learners(stack: Stack) -> list[Learner]:
    return [Learner(stack.web) for _ in range(8)]


def test_a_killed_scorer_s_learners_are_scored_all_the_same(stack: Stack, learners: list[Learner]) -> None:
    done = {}
    for learner in learners:
        state, items = feed(learner)
        assert (state, len(items)) == ("cold", 50)
        done[learner] = items[0]
        assert completes(learner, items[0]).json() == {"accepted": 1}
    stack.supervisor.kill("generate", signal.SIGKILL)
    until(lambda: {feed(learner)[0] for learner in learners} == {"scored"}, 90, every=0.5)
    for learner, item in done.items():
        assert completes(learner, item).json() == {"accepted": 0}
        assert item not in feed(learner)[1]


def test_without_the_cache_feeds_come_from_postgres(stack: Stack, learner: Learner) -> None:
    completes(learner, feed(learner)[1][0])
    until(lambda: feed(learner)[0] == "scored", 60, every=0.5)
    before = feed(learner)
    pid = stack.supervisor.pids()["redis-cache"]
    try:
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        assert feed(learner) == before
        assert time.monotonic() - began < 3.5  # one time-out of two seconds, and not one for each question
    finally:
        os.kill(pid, signal.SIGCONT)
