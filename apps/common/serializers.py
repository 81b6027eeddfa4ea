from collections.abc import Mapping
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.serializers import as_serializer_error


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses fields that it does not know, by name."""

    def to_internal_value(self, data: Any) -> Any:
        known = {field.field_name for field in self._writable_fields}
        names = [name for name in data if name not in known] if isinstance(data, Mapping) else []
        unknown = {name: [ErrorDetail("Unknown field.", code="unknown")] for name in names}
        try:
            value = super().to_internal_value(data)
        except ValidationError as error:
            raise ValidationError({**as_serializer_error(error), **unknown}) from error
        if unknown:
            raise ValidationError(unknown)
        return value
