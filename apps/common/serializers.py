from collections.abc import Mapping
from math import isfinite
from typing import Any

from django.http import QueryDict
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.serializers import as_serializer_error


class ReasonSerializer(serializers.Serializer[Any]):
    code = serializers.CharField()
    detail = serializers.CharField()
    attr = serializers.CharField(allow_null=True, help_text="The field that is wrong, by its path.")


class RefusalSerializer(serializers.Serializer[Any]):
    """Documents the one form of every refusal."""

    type = serializers.ChoiceField(choices=["validation_error", "client_error", "server_error"])
    errors = ReasonSerializer(many=True)  # type: ignore[assignment] # a field, which the metaclass takes away


class TextField(serializers.CharField):
    """A text that becomes tokens or vectors: one that is too long is told how long it is, too."""

    default_error_messages = {
        "max_length": "Ensure this field has no more than {max_length} characters; it has %(show_value)d."
    }


class FiniteField(serializers.FloatField):
    """A number, also one in a text; without those that are none, such as "nan"."""

    def to_internal_value(self, data: Any) -> float:
        value = super().to_internal_value(data)
        if not isfinite(value):
            self.fail("invalid")
        return value


NUMBERS: set[type] = {serializers.IntegerField, serializers.FloatField, FiniteField}


def has_json_type(field: serializers.Field[Any, Any, Any, Any], value: Any) -> bool:
    """Whether a value of JSON is of the field's type: "5" is no number, 1 is not true, and 5 is no text."""
    match field:
        case _ if value is None:
            return True
        case serializers.BooleanField():
            return type(value) is bool
        case serializers.ListField():
            return not isinstance(value, list) or all(has_json_type(field.child, item) for item in value)
        case serializers.CharField():
            return isinstance(value, str)
        case _ if type(field) in NUMBERS:
            return type(value) in (int, float)
    return True


def _invalid(field: serializers.Field[Any, Any, Any, Any]) -> str:
    """What the field says of another type; a list has no words of its own, but its items do."""
    while isinstance(field, serializers.ListField):
        field = field.child
    return str(field.error_messages["invalid"])


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses fields that it does not know, by name, and JSON of another type than a field's. Forms are text, and read
    as such."""

    def to_internal_value(self, data: Any) -> Any:
        known = {field.field_name for field in self._writable_fields}
        names = [name for name in data if name not in known] if isinstance(data, Mapping) else []
        wrong = {name: [ErrorDetail("Unknown field.", code="unknown")] for name in names}
        if isinstance(data, Mapping) and not isinstance(data, QueryDict):
            wrong |= {
                field.field_name: [ErrorDetail(_invalid(field), code="invalid")]
                for field in self._writable_fields
                if not has_json_type(field, data.get(field.field_name))
            }
        try:
            value = super().to_internal_value(data)
        except ValidationError as error:
            raise ValidationError({**as_serializer_error(error), **wrong}) from error
        if wrong:
            raise ValidationError(wrong)
        return value


def texts_of(detail: Any, path: str = "") -> list[str]:
    """Each error of a serializer as a text, with the path of its field."""
    if isinstance(detail, ErrorDetail):
        return [f"{path}: {detail}" if path else str(detail)]
    named = detail.items() if isinstance(detail, dict) else ((None, inner) for inner in detail)
    return [
        text
        for name, inner in named
        for text in texts_of(inner, path if name in (None, "non_field_errors") else f"{path}.{name}".strip("."))
    ]


class JobSummarySerializer(serializers.Serializer[Any]):
    """Documents the `job` of a 202, which `jobs.selectors.job_accepted` makes."""

    id = serializers.UUIDField()
    kind = serializers.CharField()
    state = serializers.CharField()
    queue_position = serializers.IntegerField(allow_null=True)
