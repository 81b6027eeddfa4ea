from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.views import APIView

from apps.common.errors import LengthRequired

IDEMPOTENCY_KEY_LENGTH = 200


class ApiView(APIView):
    """What the views of `/api/v1` have in common."""

    def validated(self, serializer_class: type[serializers.Serializer[Any]], partial: bool = False) -> dict[str, Any]:
        """The request's body in the serializer's form, or the fields that it has of that; raises `ValidationError` that
        names each wrong field."""
        if "Transfer-Encoding" in self.request.headers:  # REST framework would take the body for empty
            raise LengthRequired
        serializer = serializer_class(data=self.request.data, partial=partial, context={"request": self.request})
        serializer.is_valid(raise_exception=True)
        data: dict[str, Any] = serializer.validated_data
        return data

    def queried(self, serializer_class: type[serializers.Serializer[Any]]) -> dict[str, Any]:
        """The query in the serializer's form; raises `ValidationError` that names each wrong parameter."""
        serializer = serializer_class(data=self.request.query_params)
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)

    def idempotency_key(self) -> str | None:
        key = self.request.headers.get("Idempotency-Key")
        if key and (len(key) > IDEMPOTENCY_KEY_LENGTH or not key.isprintable()):
            raise ValidationError({"Idempotency-Key": [f"At most {IDEMPOTENCY_KEY_LENGTH} printable characters."]})
        return key
