"""One form for every refusal: `{"type", "errors": [{"code", "detail", "attr"}]}`, and OpenAI's under /v1.

Services raise what is here, DRF's exceptions, or Django's `ValidationError`; a bug is a 500 in the same form.
"""

import sys
from typing import Any

import redis.exceptions
import structlog
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.views import defaults
from drf_standardized_errors import handler
from kombu.exceptions import OperationalError as BrokerError
from rest_framework import status
from rest_framework.exceptions import (
    APIException,
    AuthenticationFailed,
    NotAuthenticated,
    ParseError,
    Throttled,
    ValidationError,
)
from rest_framework.response import Response
from rest_framework.serializers import as_serializer_error

from apps.common.throttles import ANONYMOUS, client_network

logger = structlog.get_logger(__name__)

RETRY_AFTER_S = 2  # a restarted server is back by then


class Conflict(APIException):
    """The request contradicts what is there. `extra` is added to the body."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = "The request conflicts with the present state."
    default_code = "conflict"

    def __init__(self, detail: str | None = None, code: str | None = None, extra: dict[str, Any] | None = None) -> None:
        super().__init__(detail, code)
        self.extra = extra or {}


class Gone(APIException):
    """What was there for a time, and is no more."""

    status_code = status.HTTP_410_GONE
    default_detail = "It is gone."
    default_code = "gone"


class TooManyRequests(Throttled):
    """Past a limit; `wait` seconds become `Retry-After`. `extra` is added to the body."""

    def __init__(
        self, detail: str | None = None, code: str | None = None, *, wait: float, extra: dict[str, Any] | None = None
    ) -> None:
        super().__init__(wait, detail, code)
        self.extra = extra or {}


class ServiceUnavailable(APIException):
    """A server that we need does not answer; `wait` seconds become `Retry-After`."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "The service is unavailable for the moment."
    default_code = "service_unavailable"

    def __init__(self, detail: str | None = None, code: str | None = None, wait: int = RETRY_AFTER_S) -> None:
        super().__init__(detail, code)
        self.wait = wait


class RequestTooLarge(APIException):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_detail = "The request body is too large."
    default_code = "request_too_large"


class ExceptionHandler(handler.ExceptionHandler):
    def convert_known_exceptions(self, exc: Exception) -> Exception:
        request, view = self.context["request"], self.context["view"]
        stranger = isinstance(exc, NotAuthenticated | AuthenticationFailed) and view.authentication_classes
        # REST framework asks who it is before it counts: a flood of bad tokens would pass its throttles by.
        if request and stranger and (wait := ANONYMOUS.take(client_network(request))):
            return Throttled(wait)
        return _as_api_exception(exc) or super().convert_known_exceptions(exc)

    def report_exception(self, exc: APIException, response: Response) -> None:
        if isinstance(exc, ServiceUnavailable):  # no bug: a line for each refused request will do
            logger.warning("a server does not answer", error=self.exc)
        else:
            super().report_exception(exc, response)

    def format_exception(self, exc: APIException) -> dict[str, Any]:
        return {**super().format_exception(exc), **getattr(exc, "extra", {})}


def _as_api_exception(exc: BaseException | None) -> APIException | None:
    match exc:
        case OperationalError() | InterfaceError():
            return ServiceUnavailable("The database does not answer.")
        case redis.exceptions.ConnectionError() | redis.exceptions.TimeoutError() | BrokerError():
            return ServiceUnavailable("The message broker does not answer.")
        case DjangoValidationError():
            return ValidationError(as_serializer_error(exc))
        case RequestDataTooBig():
            return RequestTooLarge()
        case SuspiciousOperation() | UnreadablePostError():
            return ParseError()
    return None


# --- errors outside DRF's views: unknown paths, middleware, the admin (ROOT_URLCONF names these handlers) ---


def handler400(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _is_api(request):
        return defaults.bad_request(request, exception)
    error = _as_api_exception(exception) or ParseError()
    return _json(request, error.status_code, error.default_code, str(error.detail))


def handler403(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _is_api(request):
        return defaults.permission_denied(request, exception)
    return _json(request, status.HTTP_403_FORBIDDEN, "permission_denied", "Permission denied.")


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _is_api(request):
        return defaults.page_not_found(request, exception)
    return _json(request, status.HTTP_404_NOT_FOUND, "not_found", f"There is no {request.path}.")


def handler500(request: HttpRequest) -> HttpResponse:
    error = _as_api_exception(sys.exc_info()[1])
    if isinstance(error, ServiceUnavailable):
        response = _json(request, error.status_code, error.default_code, str(error.detail))
        response["Retry-After"] = str(error.wait)
        return response
    if not _is_api(request):
        return defaults.server_error(request)
    return _json(request, status.HTTP_500_INTERNAL_SERVER_ERROR, "error", "Server Error (500)")


def openai_error(status_code: int, code: str | None, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error as OpenAI's clients read it."""
    kind = "requests" if status_code == 429 else "invalid_request_error" if status_code < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _is_api(request: HttpRequest) -> bool:
    return request.path.startswith(("/api/", "/v1/"))


def refusal_body(path: str, status_code: int, code: str, detail: str) -> dict[str, Any]:
    """The body of a refusal in the form of the API that `path` belongs to."""
    if path.startswith("/v1/"):
        return openai_error(status_code, code, detail)
    kind = "client_error" if status_code < 500 else "server_error"
    return {"type": kind, "errors": [{"code": code, "detail": detail, "attr": None}]}


def _json(request: HttpRequest, status_code: int, code: str, detail: str) -> HttpResponse:
    return JsonResponse(refusal_body(request.path, status_code, code, detail), status=status_code)
