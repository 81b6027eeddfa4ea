"""A killed training run goes on, and ends in the adapter of the undisturbed one."""

import json
import signal
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import openai
import pytest

from lyo.stack import Stack
from tests.flows.conftest import staff_of
from tests.helpers import until

STEPS = 8
LINES = [
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": f"What is {n} plus {n + 1}?"},
                {"role": "assistant", "content": f"{n} + {n + 1} = {2 * n + 1}."},
            ]
        }
    )
    for n in range(40)
]
RECIPE = {"max_steps": STEPS, "checkpoint_every": 3, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}}


@pytest.fixture
def ai(stack: Stack) -> Iterator[openai.OpenAI]:
    token = staff_of(stack).headers["Authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{stack.web}/v1", api_key=token, max_retries=0, timeout=60) as client:
        yield client


def begin(ai: openai.OpenAI, suffix: str) -> str:
    file = ai.files.create(file=("sums.jsonl", BytesIO("\n".join(LINES).encode())), purpose="fine-tune")
    method: Any = {
        "type": "supervised",
        "supervised": {"hyperparameters": {"batch_size": 4, "learning_rate_multiplier": 4}},
    }
    return ai.fine_tuning.jobs.create(
        model="gemma-3-270m", training_file=file.id, suffix=suffix, seed=7, method=method, extra_body=RECIPE
    ).id


def status(ai: openai.OpenAI, run: str) -> str:
    return str(ai.fine_tuning.jobs.retrieve(run).status)


def losses(ai: openai.OpenAI, run: str) -> list[tuple[int, float]]:
    """Of each metrics event, the oldest first."""
    events = ai.fine_tuning.jobs.list_events(run, limit=100).data
    data: list[Any] = [event.data for event in events if event.type == "metrics"]
    return [(one["step"], one["train_loss"]) for one in reversed(data)]


def said(ai: openai.OpenAI, run: str) -> str:
    return "\n".join(event.message for event in ai.fine_tuning.jobs.list_events(run, limit=100).data)


def test_a_killed_run_takes_every_step_as_the_undisturbed_one_and_its_adapter_serves(
    stack: Stack, ai: openai.OpenAI
) -> None:
    run = begin(ai, "killed")
    until(lambda: ai.fine_tuning.jobs.checkpoints.list(run).data, 120)
    stack.supervisor.kill("train", signal.SIGKILL)
    until(lambda: status(ai, run) == "succeeded", 180)
    resumed = [line for line in said(ai, run).splitlines() if line.startswith("Resumed from the checkpoint at step ")]
    assert len(resumed) == 1

    undisturbed = begin(ai, "undisturbed")
    until(lambda: status(ai, undisturbed) == "succeeded", 180)
    assert losses(ai, run) == losses(ai, undisturbed)
    assert [step for step, _ in losses(ai, run)] == list(range(1, STEPS + 1))
    assert losses(ai, run)[-1][1] < losses(ai, run)[0][1] / 2

    tuned = ai.fine_tuning.jobs.retrieve(run).fine_tuned_model
    assert tuned is not None
    assert tuned == ai.fine_tuning.jobs.retrieve(undisturbed).fine_tuned_model  # the same weights
    ask: Any = {"messages": [{"role": "user", "content": "What is 20 plus 21?"}], "max_tokens": 24, "temperature": 0}
    said_by = {model: ai.chat.completions.create(model=model, **ask) for model in ("gemma-3-270m", tuned)}
    texts = [answer.choices[0].message.content or "" for answer in said_by.values()]
    assert texts[1].startswith("20 + 21 = ")
    assert texts[0] != texts[1]
    assert said_by[tuned].model == tuned


def test_a_paused_run_goes_on_and_a_cancelled_one_does_not(ai: openai.OpenAI) -> None:
    run = begin(ai, "paused")
    until(lambda: losses(ai, run), 120)
    assert ai.fine_tuning.jobs.pause(run).status == "paused"
    taken = ai.fine_tuning.jobs.retrieve(run).to_dict()["step"]
    ai.fine_tuning.jobs.resume(run)
    until(lambda: len(losses(ai, run)) > taken, 120)
    assert ai.fine_tuning.jobs.cancel(run).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="cannot be resumed"):
        ai.fine_tuning.jobs.resume(run)


def test_the_shipped_tutor_is_there_and_ends_its_turns(stack: Stack, ai: openai.OpenAI) -> None:
    listed = staff_of(stack).get("/api/v1/training/adapters").json()["results"]
    (shipped,) = [adapter["name"] for adapter in listed if adapter["name"].startswith("ft:gemma-3-270m:tutor@")]
    ask: Any = {"messages": [{"role": "user", "content": "What is photosynthesis?"}], "max_tokens": 300}
    answer = ai.chat.completions.create(model=shipped, temperature=0, **ask).choices[0]
    assert answer.finish_reason == "stop"
    assert "light" in str(answer.message.content)
