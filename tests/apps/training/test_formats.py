import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.training.formats import (
    Format,
    Invalid,
    Method,
    evaluation_form,
    parse,
    parts_of,
    training_form,
    validate,
    validate_item,
)

USER, ASSISTANT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
CHAT = {"messages": [USER, ASSISTANT]}
PAIR = {"messages": [USER], "chosen": "4", "rejected": "5"}
OPENAI_PAIR = {
    "input": {"messages": [USER]},
    "preferred_output": [{"role": "assistant", "content": "4"}],
    "non_preferred_output": [{"role": "assistant", "content": "5"}],
}
THUMB = {"messages": [USER, ASSISTANT], "liked": False}
INSTRUCTION = {"instruction": "Explain.", "input": "d/dx(x^2)", "output": "A square that grows."}
ENGAGEMENT = {
    "content": {"type": "educational_video", "subject": "physics", "duration": 120, "tags": ["forces"]},
    "user_profile": {"interests": ["science"], "level": "intermediate"},
    "expected_engagement": 0.87,
}
PATH = {
    "goal": "Master machine learning",
    "current_level": "beginner",
    "time_available": 30,
    "learning_path": ["Week 1: Python", "Week 2: Statistics"],
}
QUERY = {"query": "what is osmosis", "intent": "define", "subject": "biology", "level": ""}
ALL = [
    (Format.CHAT, CHAT),
    (Format.PREFERENCE, PAIR),
    (Format.THUMB, THUMB),
    (Format.INSTRUCTION, INSTRUCTION),
    (Format.ENGAGEMENT, ENGAGEMENT),
    (Format.LEARNING_PATH, PATH),
    (Format.QUERY, QUERY),
]


@pytest.mark.parametrize(("format_", "record"), ALL)
def test_each_format_is_read_as_it_is(format_: Format, record: dict[str, Any]) -> None:
    assert parse(json.dumps(record).encode(), 1) == (format_, record)


def test_openai_preferences_become_pairs_and_an_instruction_needs_no_input() -> None:
    assert validate(OPENAI_PAIR) == (Format.PREFERENCE, PAIR)
    assert validate({"instruction": "Explain.", "output": "x"})[1]["input"] == ""


MESSAGE = '(expected {"role": "user" | "assistant" | "system", "content": "..."})'


def changed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**record, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"messages": [{"role": "user"}]}, f'messages[0] has no "content" {MESSAGE}'),
        ({"messages": [USER, {"content": "4"}]}, f'messages[1] has no "role" {MESSAGE}'),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, "messages[1].content is a number, not a string"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "messages[1].content is empty"),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            'messages[0].role is "robot", not one of system, developer',
        ),
        ({"messages": ["hi"]}, "messages[0] is a string, not an object"),
        ({"messages": "hi"}, "messages is a string, not a list"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [USER]}, 'messages[0].role is "user": the last must be "assistant"'),
        ({"messages": [ASSISTANT]}, 'messages has no message of the role "user"'),
        ({"messages": [USER, {**ASSISTANT, "weight": 2}]}, "messages[1].weight must be 0 or 1"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "messages has no assistant's turn to learn"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": []}]}, 'messages[1] has an unknown field "tool_calls"'),
        ({**CHAT, "tools": []}, 'it has an unknown field "tools"'),
        (changed(THUMB, liked="yes"), "liked is a string, not true or false"),
        (changed(PAIR, rejected=...), 'it has no "rejected"'),
        (changed(PAIR, rejected="4"), "both answers are the same"),
        (changed(PAIR, messages=[USER, ASSISTANT]), 'messages[1].role is "assistant": the last must be "user"'),
        (changed(OPENAI_PAIR, input={}), 'input has no "messages"'),
        (changed(OPENAI_PAIR, preferred_output=[ASSISTANT, ASSISTANT]), "preferred_output has 2 messages, not one"),
        (changed(OPENAI_PAIR, input=None), "input is null, not an object"),
        (changed(INSTRUCTION, output=...), 'it has no "output"'),
        (changed(INSTRUCTION, input=["x"]), "input is a list, not a string"),
        (changed(ENGAGEMENT, expected_engagement=1.2), "expected_engagement is not from 0 to 1"),
        (changed(ENGAGEMENT, expected_engagement=True), "expected_engagement is true or false, not a number"),
        (changed(ENGAGEMENT, content={**ENGAGEMENT["content"], "tags": ["a", 1]}), "content.tags[1] is a number"),
        (changed(ENGAGEMENT, content={"type": "x"}), 'content has no "subject"'),
        (
            changed(ENGAGEMENT, user_profile={"interests": [], "level": "guru"}),
            'user_profile.level is "guru", not one of',
        ),
        (changed(PATH, learning_path=[]), "learning_path is empty"),
        (changed(PATH, time_available=-1), "time_available is not from 0 to 10000000"),
        (changed(PATH, goal=...), 'it has no "goal"'),
        (changed(QUERY, intent="buy"), 'intent is "buy", not one of explain, practise, find_course, compare, define'),
        (changed(QUERY, subject="law"), 'subject is "law", not one of math'),
        (changed(QUERY, level=...), 'it has no "level"'),
        (changed(QUERY, query=" "), "query is empty"),
        ({"prompt": "x"}, 'it is of no known format: it has none of "liked", "chosen"'),
        ([], "it is a list, not an object"),
        (None, "it is null, not an object"),
    ],
)
def test_what_is_wrong_is_named(record: Any, complaint: str) -> None:
    with pytest.raises(Invalid, match=f"^line 3: {re.escape(complaint)}"):
        parse(json.dumps(record).encode(), 3)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"messages": ', "line 7 is not JSON: Expecting value at column 14."),
        (b'{"a": "\xff"}', "line 7 is not UTF-8: byte 7 is invalid."),
        (b'{"a": NaN}', "line 7 has a number out of range: NaN."),
        (b'{"a": "\\u0000"}', "line 7 has a NUL character at character 7."),
        (b"[" * 100 + b"]" * 100, "line 7 is nested more than 64 levels deep."),
        (b"\xef\xbb\xbf{}", "line 7 is not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at column 1."),
    ],
)
def test_what_is_no_json_is_named_by_its_line(line: bytes, complaint: str) -> None:
    with pytest.raises(Invalid, match=f"^{re.escape(complaint)}$"):
        parse(line, 7)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SPOILED = st.builds(
    lambda record, name, value: {**record[1], name: value},
    st.sampled_from(ALL),
    st.sampled_from(["messages", "liked", "chosen", "input", "content", "user_profile", "learning_path", "goal", "x"]),
    JSON,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | SPOILED.map(lambda r: json.dumps(r).encode()))
def test_any_line_is_read_or_refused_by_its_number(line: bytes) -> None:
    try:
        format_, record = parse(line, 12)
    except Invalid as error:
        assert str(error).startswith("line 12")
    else:
        assert validate(record) == (format_, record)  # the one form is stable
        assert any(training_form(format_, record, method) for method in Method)
        assert parts_of(format_, record).answer


# --- what is learnt ---


def forms(record: dict[str, Any]) -> list[Any]:
    format_, record = validate(record)
    return [training_form(format_, record, method) for method in (Method.SUPERVISED, Method.DPO, Method.KTO)]


def test_conversations_pairs_and_thumbs_have_the_forms_of_their_methods() -> None:
    assert forms(CHAT) == [CHAT, None, None]
    assert forms(OPENAI_PAIR) == [CHAT, PAIR, None]
    assert forms(THUMB) == [None, None, THUMB]
    liked = {**THUMB, "liked": True}
    assert forms(liked) == [CHAT, None, liked]


def test_of_a_rated_or_preferred_answer_only_that_answer_is_learnt() -> None:
    context = [USER, ASSISTANT, {"role": "user", "content": "And 3 + 3?"}]
    unlearnt = [USER, {**ASSISTANT, "weight": 0}, context[2], {"role": "assistant", "content": "6"}]
    pair = {"messages": context, "chosen": "6", "rejected": "7"}
    assert forms(pair)[0] == {"messages": unlearnt}
    assert forms({"messages": [*context, unlearnt[3]], "liked": True})[0] == {"messages": unlearnt}


@pytest.mark.parametrize(
    ("record", "question", "answer"),
    [
        (INSTRUCTION, "Explain.\n\nd/dx(x^2)", "A square that grows."),
        (changed(INSTRUCTION, input=""), "Explain.", "A square that grows."),
        (
            ENGAGEMENT,
            "How likely is this learner to engage with this content? Answer with a number from 0 to 1.\n"
            "Content: educational_video, subject physics, 120 seconds, tags: forces.\n"
            "Learner: intermediate, interests: science.",
            "0.87",
        ),
        (
            PATH,
            "Make a learning path, one step on each line.\n"
            "Goal: Master machine learning\nPresent level: beginner\nTime available: 30 minutes a day",
            "Week 1: Python\nWeek 2: Statistics",
        ),
        (
            QUERY,
            "What does a learner want who searches for this? Answer with an intent, a subject or any, a level or any.\n"
            "Search: what is osmosis",
            "define, biology, any",
        ),
    ],
)
def test_records_without_messages_become_a_question_and_its_answer(
    record: dict[str, Any], question: str, answer: str
) -> None:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert forms(record) == [{"messages": messages}, None, None]


def test_a_query_is_judged_by_its_intent_and_keeps_its_level() -> None:
    format_, record, marks = validate_item({**QUERY, "level": "advanced"})
    assert (format_, record["level"], marks.given) == (Format.QUERY, "advanced", {})
    form = evaluation_form(format_, record, marks)
    assert form is not None
    assert (form["intent"], form["messages"][1]["content"]) == ("define", "define, biology, advanced")
    assert set(form) == {"messages", "intent"}
