"""What the OpenAPI schema says beyond what views and serializers tell by themselves."""

from typing import Any

from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.openapi import AutoSchema as BaseSchema
from drf_spectacular.utils import Direction
from drf_standardized_errors import openapi

BODY_ERRORS = ("411", "413", "415")


class AutoSchema(openapi.AutoSchema):
    """Documents refusals of the body only where there is one."""

    def _should_add_error_response(self, responses: dict[str, Any], status_code: str) -> bool:
        if status_code in BODY_ERRORS and not self._get_request_body():
            return False
        return super()._should_add_error_response(responses, status_code)


class StrictSerializerExtension(OpenApiSerializerExtension):
    """Unknown fields are refused."""

    target_class = "apps.common.serializers.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: BaseSchema, direction: Direction) -> dict[str, Any]:
        schema = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        return {**schema, "additionalProperties": False} if direction == "request" else schema
