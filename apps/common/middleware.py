"""Middleware of our own."""

from collections.abc import Awaitable, Callable
from math import ceil

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import Resolver404, resolve
from django.utils.decorators import async_only_middleware
from django.utils.encoding import escape_uri_path
from django_structlog.middlewares import RequestMiddleware
from structlog.contextvars import bind_contextvars

from apps.common.throttles import ANONYMOUS, client_address, client_network


class RequestLog(RequestMiddleware):
    """Logs each request: its path, without the query, which has what people search for; and who a proxy of ours says
    has sent it."""

    @staticmethod
    def format_request(request: HttpRequest) -> str:
        return f"{request.method} {escape_uri_path(request.path)}"

    @classmethod
    def bind_ip(cls, request: HttpRequest) -> None:
        bind_contextvars(ip=client_address(request))


PROBES = ("/livez", "/readyz", "/metrics")  # who watches us must never be refused


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


def limits_itself(path: str) -> bool:
    """Whether a view of REST framework answers there: it has throttles of its own."""
    try:
        return hasattr(resolve(path).func, "cls")
    except Resolver404:
        return False


@async_only_middleware
def anonymous_pages(
    get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], Awaitable[HttpResponseBase]]:
    """Count, by address, what those ask who are not logged in, also in vain; past the limit the answer is 429.

    It does not see static files, which are answered before.
    """

    def wait(request: HttpRequest) -> float:
        return 0 if request.user.is_authenticated else ANONYMOUS.take(client_network(request))

    async def middleware(request: HttpRequest) -> HttpResponseBase:
        path = request.path_info
        free = path in PROBES or limits_itself(path)
        if not free and (seconds := await sync_to_async(wait)(request)):
            retry = {"Retry-After": str(ceil(seconds))}
            return HttpResponse("Too many requests.", status=429, content_type="text/plain", headers=retry)
        return await get_response(request)

    return middleware
