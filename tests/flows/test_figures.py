"""What a chat leaves behind for those who operate Lyo."""

import re
import time
from typing import Any

import httpx

from lyo.stack import Stack
from tests.flows.learner import Learner
from tests.helpers import until


def answered(learner: Learner, question: str, max_tokens: int) -> dict[str, Any]:
    job = learner.ask(question, max_tokens=max_tokens)
    until(lambda: learner.job(job)["state"] == "succeeded", 60)
    return learner.job(job)["result"]


def figures(stack: Stack) -> dict[str, float]:
    """Of a time from now on at which neither a job waits nor the engine has anything to do."""
    now = time.time()

    def idle() -> dict[str, float] | None:
        lines = httpx.get(f"{stack.web}/metrics").raise_for_status().text.splitlines()
        found = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}
        queued = sum(
            value for name, value in found.items() if name.startswith(("lyo_queue_waiting", "lyo_queue_running"))
        )
        busy = found["lyo_engine_running"] + found["lyo_engine_waiting"] + queued
        return found if found["lyo_engine_seen_timestamp_seconds"] > now and not busy else None

    return until(idle, 60) or {}


def test_a_chat_shows_in_the_metrics(stack: Stack, learner: Learner) -> None:
    before = figures(stack)
    usage = answered(learner, "What is a mill?", max_tokens=8)["usage"]

    after = figures(stack)

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown("lyo_engine_prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("lyo_tokens_total") == usage["completion_tokens"]
    assert grown("lyo_engine_steps_total") >= usage["completion_tokens"]
    assert 0 < grown("lyo_engine_prefill_seconds_total") < 60
    assert 0 < grown("lyo_engine_decode_seconds_total") < 60
    assert 0 <= grown("lyo_engine_cached_tokens_total") < usage["prompt_tokens"]
    assert grown("lyo_engine_crashes_total") == 0
    assert after["lyo_engine_batch_limit"] == 32
    assert after["lyo_engine_kv_tokens"] == 0
    assert 0 <= after["lyo_engine_kv_retained_tokens"] < after["lyo_engine_kv_capacity_tokens"]
    assert after["lyo_engine_adapters"] == before["lyo_engine_adapters"]


def test_staff_see_the_worker_that_answered(stack: Stack, learner: Learner) -> None:
    with httpx.Client(base_url=stack.web, headers={"Referer": stack.web}) as browser:
        browser.get("/admin/login/")
        browser.post("/admin/login/", data={**stack.admin, "csrfmiddlewaretoken": browser.cookies["csrftoken"]})
        answered(learner, "What is a river?", max_tokens=2)
        until(lambda: "0 of 32" in browser.get("/admin/engines/").text)
        page = browser.get("/admin/engines/").text
    assert re.search(r"generate@\S+, process \d+", page)
    assert re.search(r"gemma-3-270m [0-9a-f]{12}", page)
    assert "cpu, float32" in page
