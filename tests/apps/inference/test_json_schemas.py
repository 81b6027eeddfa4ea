"""What a schema may cost: its form is bounded, and what compiles it is stopped, in a process of its own."""

import json
import time
from threading import Event, Thread
from typing import Any

import pytest

from apps.common.errors import TooManyRequests
from apps.inference import json_schemas
from apps.inference.json_schemas import compile_fault, form_fault, pattern_repeats, schema_fault
from tests.helpers import resident_mb, until

BOOK = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 2_000_000_000},
        "isbn": {"type": "string", "pattern": r"^(?:\d{3}-)?\d{1,5}-\d{1,7}-\d{1,7}-[\dX]$"},
        "price": {"type": "number", "multipleOf": 0.01, "minimum": 0},
        "pages": {"type": "integer", "multipleOf": 4},
        "minutes": {"type": "integer", "multipleOf": 15},
        "multipleOf": {"const": {"multipleOf": 600011}},
        "parts": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    },
    "required": ["title"],
    "additionalProperties": False,
}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def text_of(schema: dict[str, Any]) -> str:
    return json.dumps(schema, separators=(",", ":"))


def test_an_ordinary_schema_passes() -> None:
    assert schema_fault(BOOK, text_of(BOOK), user_id=1) is None


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"type": "integer", "multipleOf": 600_011}, "At #/multipleOf: must be at most 10000."),
        (
            {"allOf": [{"multipleOf": 97}, {"multipleOf": 89}, {"multipleOf": 83}]},
            "At #/allOf/2/multipleOf: the common multiple of these numbers is 716539, of at most 10000.",
        ),
        (
            {"$ref": "#/$defs/a", "multipleOf": 0.0001, "$defs": {"a": {"multipleOf": 3}}},
            "At #/$defs/a/multipleOf: the common multiple of these numbers is 30000, of at most 10000.",
        ),
        (
            {"items": {"multipleOf": 3.14159}},
            "At #/items/multipleOf: the common multiple of these numbers is 314159, of at most 10000.",
        ),
        ({"items": {"minItems": 10_001}}, "At #/items/minItems: must be at most 10000."),
        ({"minLength": 1e300}, "At #/minLength: must be at most 10000."),
        (
            {"anyOf": [{}, {"pattern": "(a{1,100}b|[{2}]){1,101}"}]},
            "At #/anyOf/1/pattern: a part of the pattern repeats 10100 times, of at most 10000.",
        ),
        (
            {"patternProperties": {"^x{10001}$": {}}},
            "At #/patternProperties: a part of the pattern repeats 10001 times, of at most 10000.",
        ),
        ({"pattern": "a" * 1001}, "At #/pattern: a pattern of 1001 characters, of at most 1000."),
        (
            {"$defs": {"a": {"properties": {f"p{i}": {} for i in range(401)}}}},
            "At #/$defs/a/properties: 401 properties, of at most 400.",
        ),
        (nested(65), f"At #{'/items' * 33}/…: more than 64 levels deep."),
    ],
)
def test_a_schema_past_a_bound_is_told_which_and_where(schema: dict[str, Any], fault: str) -> None:
    assert form_fault(schema) == fault
    assert schema_fault(schema, text_of(schema), user_id=1) == fault


@pytest.mark.parametrize(
    ("pattern", "repeats"),
    [
        ("a{3}", 3),
        ("(a{2}b{5}){10}c{20}", 50),
        (r"[({]{3}\({4}", 4),
        ("(a|(b{2,}){3,7}){5}", 70),
        ("[]{9}]{2}", 2),
        ("a{2}{3}", 6),
        (")){2}((", 2),
        ("a{,3}{x}{", 1),
        ("[" * 1000, 1),
        ("(" * 1000, 1),
    ],
)
def test_nested_counts_of_a_pattern_multiply(pattern: str, repeats: int) -> None:
    assert pattern_repeats(pattern) == repeats


def test_what_the_form_does_not_show_is_stopped_apart_from_this_process() -> None:
    """Whatever hides a cost, the compiler that pays it is another process, which is killed."""
    before, began = sum(resident_mb()), time.process_time()
    costly = {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (97, 89, 83)]}
    assert compile_fault(text_of(costly)) == "The schema costs too much to follow: make it smaller, or demand less."
    assert sum(resident_mb()) - before < 8
    assert time.process_time() - began < 0.5


def test_a_schema_is_compiled_once() -> None:
    text = '{"const":"compiled once"}'
    assert compile_fault(text) is None
    hits = compile_fault.cache_info().hits
    assert compile_fault(text) is None
    assert compile_fault.cache_info().hits == hits + 1


def test_a_user_s_schemas_are_compiled_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = [], Event()

    def compile_slowly(text: str) -> None:
        begun.append(text)
        assert go_on.wait(10)

    monkeypatch.setattr(json_schemas, "compile_fault", compile_slowly)
    monkeypatch.setattr(json_schemas, "TURN_WAIT_S", 0.1)
    threads = [Thread(target=schema_fault, args=[{}, name], kwargs={"user_id": name[0]}) for name in ("a1", "b1")]
    [thread.start() for thread in threads]
    until(lambda: sorted(begun) == ["a1", "b1"])
    with pytest.raises(TooManyRequests):
        schema_fault({}, "a2", user_id="a")
    go_on.set()
    [thread.join() for thread in threads]
    assert schema_fault({}, "a2", user_id="a") is None
    assert sorted(begun) == ["a1", "a2", "b1"]
