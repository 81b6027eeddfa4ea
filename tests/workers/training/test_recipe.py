"""Recipes: what is refused, and the learning rate of each step."""

from typing import Any

import pytest

from workers.protocols import Refused
from workers.training.recipe import Recipe


def test_the_learning_rate_rises_and_then_follows_half_a_cosine() -> None:
    recipe = Recipe(learning_rate=1.0, warmup=0.2)
    rates = [recipe.learning_rate_at(step, 10) for step in range(10)]
    assert rates == pytest.approx(
        [0.5, 1.0, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060], abs=1e-6
    )


def test_without_warmup_it_begins_at_its_height() -> None:
    assert Recipe(learning_rate=1.0, warmup=0).learning_rate_at(0, 1) == 1


@pytest.mark.parametrize(
    ("values", "steps"),
    [({}, 13), ({"epochs": 2}, 25), ({"epochs": 0.1}, 2), ({"max_steps": 7}, 7), ({"batch_size": 200}, 1)],
)
def test_steps(values: dict[str, Any], steps: int) -> None:
    assert Recipe.of(values).steps(examples=100) == steps


def test_a_recipe_is_what_its_json_says() -> None:
    recipe = Recipe.of({"r": 8, "targets": "all-linear", "method": "dpo"})
    assert recipe.targets == ("all-linear",)
    assert Recipe.of(recipe.json()) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 8}, "a recipe has no rank; it has method, r, alpha"),
        ({"r": 0}, "r is 0; it must be a whole number from 1 to 256"),
        ({"r": 8.0}, "r is 8.0; it must be a whole number"),
        ({"r": True}, "r is True; it must be a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be a number from 1e-08 to 1"),
        ({"learning_rate": "3e-4"}, "learning_rate is '3e-4'; it must be a number"),
        ({"dropout": 1}, "dropout is 1; it must be a number from 0 to 0.9"),
        ({"method": "ppo"}, "method is 'ppo'; it must be sft or full or dpo or kto"),
        ({"dtype": "float16"}, "dtype is 'float16'; it must be bf16 or float32"),
        ({"max_steps": 0}, "max_steps is 0; it must be a whole number from 1, or null"),
        ({"targets": []}, r"targets is \(\); it must be a list of modules' names"),
        ({"targets": [None]}, r"targets is \(None,\); it must be a list"),
        ({"targets": 3}, r"targets is \(3,\); it must be a list"),
        ({"batch_size": 4, "accumulation": 5}, "accumulation is 5; it must be at most 4"),
        ({"batch_size": 4, "accumulation": 3, "method": "kto"}, "accumulation is 3; it must be at most 2"),
    ],
)
def test_what_cannot_be_trained_with_is_refused_by_its_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        Recipe.of(values)
    assert refused.value.code == "invalid_recipe"
