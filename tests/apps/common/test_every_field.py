"""Every field of every form, fed with what clients send for "nothing in particular"."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

ODD = (
    "auto",
    "null",
    "none",
    "",
    " ",
    "nan",
    "inf",
    "1e999",
    "-1",
    "\ud800",
    None,
    True,
    0,
    -1,
    1e308,
    [],
    {},
    [None],
    {"a": None},
)


def forms() -> set[type[serializers.Serializer[Any]]]:
    """All serializers that take something in."""
    for config in apps.get_app_configs():
        if config.name.startswith("apps."):
            for name in ("serializers", "views"):
                try:
                    import_module(f"{config.name}.{name}")
                except ModuleNotFoundError as error:
                    assert error.name == f"{config.name}.{name}"
    return {one for one in subclasses(serializers.Serializer) if one.__module__.startswith("apps.")}


def subclasses(of: type[Any]) -> Iterator[type[Any]]:
    for one in of.__subclasses__():
        yield one
        yield from subclasses(one)


def fields_of(form: serializers.Field[Any, Any, Any, Any]) -> Iterator[serializers.Field[Any, Any, Any, Any]]:
    for one in (*getattr(form, "fields", {}).values(), *filter(None, [getattr(form, "child", None)])):
        if not one.read_only and type(one).to_internal_value is not serializers.Field.to_internal_value:
            yield one
            yield from fields_of(one)


@pytest.mark.django_db
def test_no_field_of_any_form_fails_but_by_a_refusal() -> None:
    """A field that reads something as None still has its bounds to check: "auto" was a TypeError."""
    seen = 0
    for form in forms():
        for field in fields_of(form()):
            for value in ODD:
                seen += 1
                try:
                    field.run_validation(value)
                except (ValidationError, serializers.SkipField):
                    continue
                except Exception as error:
                    pytest.fail(f"{form.__name__}.{field.field_name} of {value!r}: {error!r}")
    assert seen > 2000
