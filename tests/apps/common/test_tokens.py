"""What can never fit is refused at once, and what might never is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rest_framework.exceptions import ValidationError

from apps.common.tokens import least_tokens, require_room
from lyo import env
from tests.workers.conftest import gemma_folder
from workers.models.template import render
from workers.models.tokenizer import Tokenizer

ROLES = st.sampled_from(["system", "user", "assistant"])
CONTENTS = st.text(max_size=40) | st.builds(lambda text, n: text * n, st.text(max_size=3), st.integers(0, 400))
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(gemma_folder())


@given(MESSAGES)
@settings(max_examples=200, deadline=None)
def test_the_bound_is_never_above_the_tokens_that_there_are(tokenizer: Tokenizer, messages: list[dict]) -> None:
    assert least_tokens(messages) <= len(render(tokenizer, messages))


def test_the_bound_is_met_by_what_packs_best(tokenizer: Tokenizer) -> None:
    longest = "\u2014" * 16  # one token of 48 bytes
    messages = [{"role": "user", "content": longest * 1000}]
    assert tokenizer.longest_token == env.LONGEST_TOKEN == len(longest.encode())
    assert len(render(tokenizer, messages)) - least_tokens(messages) < 8


@pytest.mark.parametrize(
    "content",
    ["a" * 250_000, "\U0001f600" * 60_000, "a " * 120_000, "\u2014" * 70_000],
)
def test_a_prompt_that_can_never_fit_is_refused_with_what_was_sent_and_what_fits(content: str) -> None:
    messages = [{"role": "user", "content": content}]
    with pytest.raises(ValidationError) as refusal:
        require_room(messages, field="content")
    (error,) = refusal.value.detail["content"]
    assert error.code == "context_length_exceeded"
    assert f"maximum context length is {env.CONTEXT_TOKENS} tokens" in error
    assert f"at least {least_tokens(messages)}." in error


@given(MESSAGES)
@settings(max_examples=200, deadline=None)
def test_an_answer_that_has_room_is_never_refused(tokenizer: Tokenizer, messages: list[dict]) -> None:
    room = env.CONTEXT_TOKENS - len(render(tokenizer, messages))
    if room > 0:
        require_room(messages, field="messages", answer=room)


def test_an_answer_that_never_has_room_is_refused_with_what_was_sent_and_what_fits() -> None:
    messages = [{"role": "user", "content": "Is 4 even?"}]
    room = env.CONTEXT_TOKENS - least_tokens(messages)
    require_room(messages, field="messages", answer=room)
    with pytest.raises(ValidationError) as refusal:
        require_room(messages, field="messages", answer=room + 1)
    (error,) = refusal.value.detail["messages"]
    assert error.code == "context_length_exceeded"
    assert f"maximum context length is {env.CONTEXT_TOKENS} tokens" in error
    assert f"leaves at most {room}; an answer of {room + 1} is asked for." in error


def test_many_short_turns_can_be_too_many() -> None:
    turns = [{"role": role, "content": ""} for _ in range(1024) for role in ("user", "assistant")]
    with pytest.raises(ValidationError):
        require_room(turns, field="messages")


def test_blanks_that_are_stripped_do_not_count() -> None:
    require_room([{"role": "user", "content": " " * 2_000_000 + "Hello" + "\n" * 2_000_000}], field="messages")
