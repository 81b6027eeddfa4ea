"""A field takes its own JSON type and no other; what comes as text is read as such."""

from typing import Any

import pytest
from django.http import QueryDict
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from apps.common.pagination import CursorPagination
from apps.common.serializers import FiniteField, StrictSerializer


class Form(StrictSerializer):
    name = serializers.CharField(required=False)
    age = serializers.IntegerField(required=False)
    share = FiniteField(required=False)
    agreed = serializers.BooleanField(required=False)
    colours = serializers.ListField(child=serializers.CharField(), required=False)
    places = serializers.ListField(child=serializers.ListField(child=serializers.IntegerField()), required=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 0),
        ("name", True),
        ("age", "5"),
        ("age", True),
        ("age", 5.5),
        ("share", False),
        ("share", "0.5"),
        ("agreed", 0),
        ("agreed", "true"),
        ("colours", ["red", 5]),
        ("colours", [None, [None]]),
        ("places", [[1], ["2"]]),
    ],
)
def test_another_json_type_is_refused_by_name(field: str, value: Any) -> None:
    form = Form(data={field: value})
    assert not form.is_valid()
    assert list(form.errors) == [field]


@pytest.mark.parametrize(
    ("field", "value"), [("name", "0"), ("age", 5.0), ("share", 1), ("agreed", True), ("colours", ["red"])]
)
def test_its_own_json_type_is_taken(field: str, value: Any) -> None:
    form = Form(data={field: value})
    assert form.is_valid()
    assert form.validated_data == {field: value}


def test_a_form_is_text() -> None:
    form = Form(data=QueryDict("age=5&share=0.5&agreed=true"))
    assert form.is_valid()
    assert form.validated_data == {"age": 5, "share": 0.5, "agreed": True}


@pytest.mark.parametrize(("asked", "size"), [("1", 1), ("007", 7), ("200", 200), ("9" * 5000, 200)])
def test_a_page_has_the_size_that_was_asked_for_up_to_the_largest(asked: str, size: int) -> None:
    request = APIView().initialize_request(APIRequestFactory().get("/", {"page_size": asked}))
    assert CursorPagination().get_page_size(request) == size


@pytest.mark.parametrize("asked", ["0", "-1", "", "null", "1.0", " 1", "٣"])
def test_what_is_no_size_of_a_page_is_refused(asked: str) -> None:
    request = APIView().initialize_request(APIRequestFactory().get("/", {"page_size": asked}))
    with pytest.raises(ValidationError) as refused:
        CursorPagination().get_page_size(request)
    assert list(refused.value.detail) == ["page_size"]  # type: ignore[arg-type]
