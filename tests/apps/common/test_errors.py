"""What a client sees when something goes wrong, in a view or around it."""

from collections.abc import Callable

import kombu.exceptions
import pytest
import redis.exceptions
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation, ValidationError
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.test import Client
from django.urls import path
from rest_framework import serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.errors import Conflict, TooManyRequests, handler400, handler403, handler404, handler500
from apps.common.serializers import StrictSerializer
from apps.common.views import ApiView

ERRORS: dict[str, Callable[[], Exception]] = {
    "bug": lambda: RuntimeError("a secret"),
    "conflict": lambda: Conflict("Busy.", code="answer_running", extra={"job": "7"}),
    "too-many": lambda: TooManyRequests("Full.", code="queue_full", wait=3.2, extra={"queue_position": 9}),
    "too-big": RequestDataTooBig,
    "suspicious": lambda: SuspiciousOperation("Odd."),
    "unreadable": lambda: UnreadablePostError("Gone."),
    "invalid": lambda: ValidationError({"name": [ValidationError("Taken.", code="unique")]}),
    "forbidden": PermissionDenied,
    "postgres": lambda: OperationalError("down"),
    "postgres-closed": lambda: InterfaceError("closed"),
    "redis": lambda: redis.exceptions.ConnectionError("down"),
    "redis-frozen": lambda: redis.exceptions.TimeoutError("frozen"),
    "broker": lambda: kombu.exceptions.OperationalError("down"),
}


class InnerSerializer(StrictSerializer):
    size = serializers.IntegerField()


class BodySerializer(StrictSerializer):
    name = serializers.CharField()
    inner = InnerSerializer(required=False)


class View(ApiView):
    authentication_classes = ()
    permission_classes = (AllowAny,)
    throttle_classes = ()

    def get(self, request: Request, error: str) -> Response:
        raise ERRORS[error]()

    def post(self, request: Request, error: str) -> Response:
        return Response(self.validated(BodySerializer))


def plain(request: HttpRequest, error: str) -> HttpResponse:
    raise ERRORS[error]()


urlpatterns = [
    path("api/v1/test/<error>", View.as_view()),
    path("api/plain/<error>", plain),
    path("v1/plain/<error>", plain),
    path("admin/plain/<error>", plain),
]
__all__ = ["handler400", "handler403", "handler404", "handler500"]

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture
def client() -> Client:
    return Client(raise_request_exception=False)


@pytest.mark.parametrize(
    ("error", "status", "code", "detail", "attr"),
    [
        ("bug", 500, "error", "Server Error (500)", None),
        ("conflict", 409, "answer_running", "Busy.", None),
        ("too-many", 429, "queue_full", "Full. Expected available in 4 seconds.", None),
        ("too-big", 413, "request_too_large", "The request body is too large.", None),
        ("suspicious", 400, "parse_error", "Malformed request.", None),
        ("unreadable", 400, "parse_error", "Malformed request.", None),
        ("invalid", 400, "unique", "Taken.", "name"),
        ("postgres", 503, "service_unavailable", "The database does not answer.", None),
        ("postgres-closed", 503, "service_unavailable", "The database does not answer.", None),
        ("redis", 503, "service_unavailable", "The message broker does not answer.", None),
        ("redis-frozen", 503, "service_unavailable", "The message broker does not answer.", None),
        ("broker", 503, "service_unavailable", "The message broker does not answer.", None),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "image/png;;q=x, /"])
def test_an_error_in_a_view_has_the_one_format(
    client: Client, error: str, status: int, code: str, detail: str, attr: str | None, accept: str
) -> None:
    answer = client.get(f"/api/v1/test/{error}", headers={"accept": accept})
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/json")
    assert answer.json()["errors"] == [{"code": code, "detail": detail, "attr": attr}]


def test_refusals_say_when_to_come_back_and_what_else_is_known(client: Client) -> None:
    full = client.get("/api/v1/test/too-many")
    assert (full["Retry-After"], full.json()["queue_position"]) == ("4", 9)
    assert client.get("/api/v1/test/conflict").json()["job"] == "7"
    assert int(client.get("/api/v1/test/postgres")["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ("bug", 500, "error"),
        ("too-big", 413, "request_too_large"),
        ("suspicious", 400, "parse_error"),
        ("forbidden", 403, "permission_denied"),
        ("postgres", 503, "service_unavailable"),
        ("redis", 503, "service_unavailable"),
    ],
)
def test_an_error_outside_a_view_has_its_formats_too(client: Client, error: str, status: int, code: str) -> None:
    ours, openai = client.get(f"/api/plain/{error}"), client.get(f"/v1/plain/{error}")
    assert (ours.status_code, openai.status_code) == (status, status)
    assert (ours.json()["errors"][0]["code"], openai.json()["error"]["code"]) == (code, code)
    assert ("Retry-After" in ours) == (status == 503)


def test_the_admin_gets_pages_and_a_503_when_the_database_is_down(client: Client) -> None:
    assert client.get("/admin/plain/bug")["Content-Type"].startswith("text/html")
    assert client.get("/admin/plain/postgres").status_code == 503
    assert client.get("/admin/nothing").status_code == 404


@pytest.mark.parametrize("url", ["/api/v1/nothing", "/api/v1/%00", "/api/v1/%ff%zz", "/api/v1/test/%00/x"])
def test_an_unknown_path_is_404_in_json(client: Client, url: str) -> None:
    answer = client.get(url)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "not_found")


def test_too_many_query_parameters_are_400(client: Client) -> None:
    answer = client.get("/api/v1/test/conflict", {str(n): "" for n in range(2000)})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "parse_error")


@pytest.mark.parametrize(
    ("body", "attrs"),
    [
        ('{"name": "x", "nmae": "y"}', {"nmae": "unknown"}),
        ('{"nmae": "y"}', {"name": "required", "nmae": "unknown"}),
        ('{"name": "x", "inner": {"size": 1, "sise": 2}}', {"inner.sise": "unknown"}),
        ("[]", {"non_field_errors": "invalid"}),
        ('"text"', {"non_field_errors": "invalid"}),
        ("null", {"non_field_errors": "null"}),
    ],
)
def test_each_wrong_field_is_named(client: Client, body: str, attrs: dict[str, str]) -> None:
    answer = client.post("/api/v1/test/x", body, "application/json")
    assert answer.status_code == 400
    assert {error["attr"]: error["code"] for error in answer.json()["errors"]} == attrs
