"""Middleware of our own."""

from collections.abc import Awaitable, Callable

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import async_only_middleware


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
