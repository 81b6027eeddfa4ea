"""Middleware of our own."""

from collections.abc import Awaitable, Callable

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import async_only_middleware
from django.utils.encoding import escape_uri_path
from django_structlog.middlewares import RequestMiddleware
from structlog.contextvars import bind_contextvars

from apps.common.throttles import client_address


class RequestLog(RequestMiddleware):
    """Logs each request: its path, without the query, which has what people search for; and who a proxy of ours says
    has sent it."""

    @staticmethod
    def format_request(request: HttpRequest) -> str:
        return f"{request.method} {escape_uri_path(request.path)}"

    @classmethod
    def bind_ip(cls, request: HttpRequest) -> None:
        bind_contextvars(ip=client_address(request))


class DeferredResponse(HttpResponse):
    """Stands for a response that `make` awaits after the view has returned.

    So a synchronous view can wait for a worker without holding a thread, and ends when the client hangs up.
    """

    def __init__(self, make: Callable[[], Awaitable[HttpResponseBase]]) -> None:
        super().__init__()
        self.make = make


@async_only_middleware
def deferred_response(
    get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], Awaitable[HttpResponseBase]]:
    async def middleware(request: HttpRequest) -> HttpResponseBase:
        response = await get_response(request)
        return await response.make() if isinstance(response, DeferredResponse) else response

    return middleware
