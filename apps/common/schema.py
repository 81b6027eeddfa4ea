"""What the OpenAPI schema says beyond what views and serializers tell by themselves."""

from typing import Any

from drf_spectacular.extensions import OpenApiSerializerExtension, OpenApiSerializerFieldExtension
from drf_spectacular.openapi import AutoSchema as BaseSchema
from drf_spectacular.utils import Direction
from drf_standardized_errors import openapi
from rest_framework.permissions import SAFE_METHODS
from rest_framework.settings import api_settings

BODY_ERRORS = ("413", "415")


class AutoSchema(openapi.AutoSchema):
    """Documents refusals of the body only where there is one, and that of who has not confirmed an address."""

    def _should_add_error_response(self, responses: dict[str, Any], status_code: str) -> bool:
        if status_code in BODY_ERRORS and not self._get_request_body():
            return False
        if status_code == "403" and status_code not in responses and self._asks_for_confirmation():
            return True
        return super()._should_add_error_response(responses, status_code)

    def _asks_for_confirmation(self) -> bool:
        view = self.view
        standard = view.get_exception_handler() is api_settings.EXCEPTION_HANDLER  # /v1 has a form of its own
        may_all = self.method in SAFE_METHODS or getattr(view, "for_unconfirmed", False)
        return standard and bool(view.authentication_classes) and not may_all


class StrictSerializerExtension(OpenApiSerializerExtension):
    """Unknown fields are refused."""

    target_class = "apps.common.serializers.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: BaseSchema, direction: Direction) -> dict[str, Any]:
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        return {**schema, "additionalProperties": False} if direction == "request" else schema


class AutoFieldExtension(OpenApiSerializerFieldExtension):
    """A number, or OpenAI's "auto"."""

    target_class = "apps.training.serializers.runs.AutoMixin"
    match_subclasses = True

    def map_serializer_field(self, auto_schema: BaseSchema, direction: Direction) -> dict[str, Any]:
        number = auto_schema._map_serializer_field(self.target, direction, bypass_extensions=True)
        return {"oneOf": [number, {"type": "string", "enum": ["auto"]}]}


class ListFieldExtension(OpenApiSerializerFieldExtension):
    """How many there may be."""

    target_class = "rest_framework.serializers.ListField"
    match_subclasses = True

    def map_serializer_field(self, auto_schema: BaseSchema, direction: Direction) -> dict[str, Any]:
        schema = auto_schema._map_serializer_field(self.target, direction, bypass_extensions=True)
        least = self.target.min_length or (0 if self.target.allow_empty else 1)
        most = self.target.max_length
        return {**schema, **({"minItems": least} if least else {}), **({"maxItems": most} if most is not None else {})}


class StringsFieldExtension(ListFieldExtension):
    """A list of texts, or one text that stands for a list of it."""

    target_class = "apps.inference.serializers.StringsField"
    priority = 1

    def map_serializer_field(self, auto_schema: BaseSchema, direction: Direction) -> dict[str, Any]:
        texts = super().map_serializer_field(auto_schema, direction)
        return {"oneOf": [texts["items"], texts]}


class OpenAISerializerExtension(OpenApiSerializerExtension):
    """Null stands for a field that is not given."""

    target_class = "apps.inference.serializers.OpenAISerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: BaseSchema, direction: Direction) -> dict[str, Any]:
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        required = schema.get("required", ())
        fields = {
            name: field if name in required else _or_null(field) for name, field in schema.get("properties", {}).items()
        }
        return {**schema, "properties": fields} if direction == "request" else schema


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return {"allOf": [schema], "nullable": True}
    return {**schema, "nullable": True, **({"enum": [*schema["enum"], None]} if "enum" in schema else {})}
