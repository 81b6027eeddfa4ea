"""Patterns from outside: matched as PEFT matches them, and never for long."""

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from workers.engine import patterns
from workers.engine.patterns import Patterns, plain_config

MODULES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 10, 11)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
]
RUNAWAY = ["(a+)+b", "(a|a)*b", "(.*)*x", "((a?){30}){30}b", ".*.*.*.*.*.*.*.*.*.*b", r"(\w+\.?)+!"]
PARTS = [
    "q_proj",
    "layers.1",
    "model.layers.1.self_attn.q_proj",
    ".*",
    "self_attn",
    "1",
    ".",
    "q_proj|v_proj",
    "^model",
]


@pytest.mark.parametrize(
    "values",
    [
        {"q_proj": 1},
        {"proj": 1},
        {"1.self_attn.q_proj": 1, "q_proj": 2},
        {"layers.1.mlp.up_proj": 1},
        {"layers.1.......proj": 1},
        {r"layers\.1\.mlp\..*": 1, "up_proj": 2},
        {"^model.layers.1.self_attn.v_proj": 1},
        {"self_attn": 1},
        {r"layers\.\d\.": 1, r".*\.1\d\..*": 2},
        {"q_proj|v_proj": 1},
        {"q_proj)|(.*up_proj": 1},
        {"": 1},
        {"[qv]_proj": 1, "(?:up)_proj": 2},
        {r"\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:q_proj|up_proj)": 1},
    ],
    ids=str,
)
def test_patterns_match_what_pefts_match(values: dict[str, Any]) -> None:
    for module in MODULES:
        assert Patterns(values).of(module, 0) == values.get(get_pattern_key(values, module), 0), module


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join), st.integers(1, 99)))
def test_they_do_so_however_they_are_joined(values: dict[str, int]) -> None:
    for module in MODULES:
        assert Patterns(values).of(module, 0) == values.get(get_pattern_key(values, module), 0)


@pytest.mark.parametrize("pattern", RUNAWAY)
def test_a_pattern_that_would_run_away_is_matched_at_once(pattern: str) -> None:
    began = time.monotonic()
    assert Patterns({pattern: 1}).of("a" * 300, 0) == 0
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"(": 1}, r"cannot be matched in linear time: missing \)"),
        ({"(?=a)": 1}, "cannot be matched in linear time"),
        ({r"(a)\1": 1}, "cannot be matched in linear time"),
        ({"(((a{99}){99}){99})": 1}, "cannot be matched in linear time"),
        ({"(" + "x" * 5000 + ")": 1}, "a pattern has 5002 characters"),
        ({str(number): 1 for number in range(2049)}, "it has 2049 patterns, at most 2048 are matched"),
        ([1], r"it is \[1\], not an object"),
    ],
)
def test_what_cannot_be_matched_is_refused(values: Any, problem: str) -> None:
    with pytest.raises((ValueError, TypeError), match=problem):
        Patterns(values)


def test_many_patterns_have_a_time_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "BUDGET_S", 0.0)
    many = Patterns({f"{number}(a|b)": 1 for number in range(50)})
    with pytest.raises(ValueError, match="take too long"):
        many.of("model")


def test_a_pattern_for_each_module_of_a_large_model_takes_no_time() -> None:
    names = [f"model.layers.{layer}.{part}_proj" for layer in range(100) for part in "qkvogud"]
    values = {name: number for number, name in enumerate(names)}
    found = Patterns(values)
    began = time.thread_time()
    assert [found.of(name) for name in names] == list(values.values())
    assert time.thread_time() - began < 5


def test_settings_are_written_out_where_they_have_patterns_and_else_stay_as_they_are() -> None:
    plain = {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        "rank_pattern": {"1.q_proj": 4},
        "alpha_pattern": {},
    }
    assert plain_config(plain, ["a.1.q_proj"]) == plain
    config = {
        **plain,
        "target_modules": "(a+)+|.*q_proj",
        "exclude_modules": ".*v_proj",
        "layers_pattern": ["lay(er)+s"],
        "layers_to_transform": [1],
        "rank_pattern": {".*[1].q_proj": 4, "k_proj": 2},
        "alpha_pattern": {"(q|k)_proj": 16},
    }
    assert plain_config(config, ["a.0.q_proj", "a.1.q_proj"]) == {
        **plain,
        "target_modules": ["a.0.q_proj", "a.1.q_proj"],
        "exclude_modules": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "rank_pattern": {"a.1.q_proj": 4},
        "alpha_pattern": {},
    }
