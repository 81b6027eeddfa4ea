"""What the views under /v1 have in common: they answer, and refuse, in the form that OpenAI's clients expect.

A refusal is `{"error": {"message", "type", "param", "code"}}`: https://platform.openai.com/docs/api-reference.
"""

from collections.abc import Callable
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers, status
from rest_framework.exceptions import APIException
from rest_framework.response import Response
from rest_framework.settings import api_settings

from apps.common.errors import ExceptionHandler, openai_error
from apps.common.views import ApiView

IDEMPOTENCY_KEY = OpenApiParameter("Idempotency-Key", OpenApiTypes.STR, "header", description="Makes repeats harmless.")
CODES = {status.HTTP_401_UNAUTHORIZED: "invalid_api_key", status.HTTP_429_TOO_MANY_REQUESTS: "rate_limit_exceeded"}


class ErrorDetailSerializer(serializers.Serializer[Any]):
    message = serializers.CharField()
    type = serializers.CharField()
    param = serializers.CharField(allow_null=True, help_text="The field that is wrong.")
    code = serializers.CharField(allow_null=True)


class ErrorSerializer(serializers.Serializer[Any]):
    error = ErrorDetailSerializer()


COMMON_ERRORS = dict.fromkeys((401, 405, 429, 500, 503), ErrorSerializer)


class _Handler(ExceptionHandler):
    def format_exception(self, exc: APIException) -> dict[str, Any]:
        """The first error; what an exception has in `extra` stands beside it."""
        first = super().format_exception(exc)["errors"][0]
        path = [name for name in (first["attr"] or "").split(".") if name != api_settings.NON_FIELD_ERRORS_KEY]
        field = ".".join(path) or None
        body = openai_error(
            exc.status_code,
            CODES.get(exc.status_code, first["code"]),
            f"{field}: {first['detail']}" if field else first["detail"],
            field or getattr(exc, "param", None),
        )
        body["error"].update(getattr(exc, "extra", {}))
        return body


def exception_handler(exc: Exception, context: Any) -> Response | None:
    return _Handler(exc, context).run()


class OpenAIView(ApiView):
    def get_exception_handler(self) -> Callable[..., Response | None]:
        return exception_handler
