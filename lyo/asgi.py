"""The ASGI application of a web process: Django behind a guard that counts request bodies while they arrive.

Django reads a body whole, to a file where it is large, before any view has seen who sends it. So the bound is here:
what a login takes for strangers, LYO_MAX_BODY_MB for those who are logged in, and a file's own limit on the few paths
that take one, for those who may use them (who is looked up first, so that a stranger costs a query and no memory).
`lyo.http` bounds the rest of a request.
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler, ASGIRequest

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lyo.settings")
django.setup(set_prefix=False)

from django.conf import settings  # noqa: E402 - what follows needs the setup
from django.contrib.auth import get_user  # noqa: E402
from django.db import InterfaceError, OperationalError, connection  # noqa: E402
from rest_framework.exceptions import APIException  # noqa: E402
from rest_framework.request import Request  # noqa: E402

from apps.common.errors import RETRY_AFTER_S, refusal_body  # noqa: E402
from apps.users.auth import TokenAuthentication  # noqa: E402
from apps.users.sessions import SessionStore  # noqa: E402
from lyo import env  # noqa: E402

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MB = 2**20
STRANGERS_KB = 64
LARGE_AT_ONCE = 32  # requests of a user with more than that, of each web process
FORM_BYTES = 2**16  # of a multipart body, beside the file
LINGER_S = 5.0  # for which a refused client may go on sending: who is cut off at once never reads why
LINGER_BYTES = 4 * MB


class Refusal(Exception):
    """Why no more of a body is read."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail


class Handler(ASGIHandler):
    def create_request(self, scope: Any, body_file: Any) -> Any:
        """Tell the length of a chunked body, which has been read by now: REST framework takes one without for empty."""
        request, response = super().create_request(scope, body_file)
        if request is not None and "HTTP_TRANSFER_ENCODING" in request.META:
            body_file.seek(0, os.SEEK_END)
            request.META["CONTENT_LENGTH"] = str(body_file.tell())
            body_file.seek(0)
        return request, response


@dataclass(frozen=True)
class Allowance:
    """How many bytes a body may have, how what is past them is refused, and whose it is where it may be large."""

    limit: int
    past: Refusal
    user_id: Any = None


class Guard:
    """Passes requests on to `app`, and of each body no more than it may have."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.large: Counter[Any] = Counter()  # bodies in this process that may be large, by user

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            if "\0" in scope["path"]:  # no name has one, and Postgres takes none
                raise Refusal(404, "not_found", "No path has a NUL character.")
            declared = _declared(scope)
            allowance = await _allowance(scope, declared)
            if declared is not None and declared > allowance.limit:
                raise allowance.past
            with self._among(allowance.user_id):
                await self.app(scope, _counted(receive, allowance), send)
        except Refusal as refusal:
            await _refuse(refusal, scope["path"], receive, send)

    @contextmanager
    def _among(self, user_id: Any) -> Iterator[None]:
        """Count a body that may be large while it is here; raises `Refusal` past the most of one user."""
        if user_id is None:
            yield
            return
        if self.large[user_id] >= LARGE_AT_ONCE:
            why = f"You may send {LARGE_AT_ONCE} requests of more than {STRANGERS_KB} KB at a time."
            raise Refusal(429, "throttled", why)
        self.large[user_id] += 1
        try:
            yield
        finally:
            self.large[user_id] -= 1
            if not self.large[user_id]:
                del self.large[user_id]


def _counted(receive: Receive, allowance: Allowance) -> Receive:
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > allowance.limit:
            raise allowance.past
        return message

    return counted


def _declared(scope: Any) -> int | None:
    """The length that the head says a body has; None where it is chunked."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    return int(headers.get(b"content-length", 0))


async def _allowance(scope: Any, declared: int | None) -> Allowance:
    """What this client may send."""
    general = env.MAX_BODY_MB * MB
    too_large = Refusal(413, "request_too_large", f"A request body may have {env.MAX_BODY_MB} MB at most.")
    if declared is not None and declared <= STRANGERS_KB * 1024:
        return Allowance(declared, too_large)
    try:
        user = await sync_to_async(_sender, thread_sensitive=False)(scope)
    except (OperationalError, InterfaceError) as error:
        raise Refusal(503, "service_unavailable", "The database does not answer.") from error
    if user is None:
        why = f"Only who is logged in may send more than {STRANGERS_KB} KB."
        return Allowance(STRANGERS_KB * 1024, Refusal(401, "not_authenticated", why))
    upload_mb, permission = _upload(scope["path"]) if scope["method"] == "POST" else (0, "")
    if not upload_mb:
        return Allowance(general, too_large, user.pk)
    if not (user.has_perm(permission) if permission else user.is_staff):
        past = Refusal(403, "permission_denied", f"You may not send more than {env.MAX_BODY_MB} MB.")
        return Allowance(general, past, user.pk)
    past = Refusal(413, "request_too_large", f"A file may have {upload_mb} MB at most.")
    return Allowance(max(general, upload_mb * MB + FORM_BYTES), past, user.pk)


def _upload(path: str) -> tuple[int, str]:
    """How large the path's files may be, 0 where it takes none, and the permission to send one; "" is the admin's."""
    match path:
        case "/v1/files":
            return env.MAX_FILE_MB, "training.add_file"
        case "/api/v1/training/evaluation-sets":
            return env.MAX_FILE_MB, "training.add_evaluationset"
        case "/api/v1/training/adapters":
            return env.MAX_ADAPTER_MB, "inference.add_adapter"
    return (env.MAX_FILE_MB if path.startswith("/admin/") else 0), ""


def _sender(scope: Any) -> Any:
    """Whose bearer token or session the head has, with permissions; None for a stranger."""
    request = ASGIRequest(scope, BytesIO())
    try:
        if found := TokenAuthentication().authenticate(Request(request)):
            user: Any = found[0]
        else:
            request.session = SessionStore(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
            user = get_user(request)
        if not user.is_authenticated:
            return None
        user.get_all_permissions()  # read and kept
        return user
    except APIException:  # a token that is none, or of somebody who has not confirmed an address
        return None
    finally:
        connection.close()


async def _refuse(refusal: Refusal, path: str, receive: Receive, send: Send) -> None:
    body = json.dumps(refusal_body(path, refusal.status, refusal.code, refusal.detail)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    headers += [(b"www-authenticate", b"Bearer")] * (refusal.status == 401)
    headers += [(b"retry-after", b"%d" % RETRY_AFTER_S)] * (refusal.status in (429, 503))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    discarded = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while discarded < LINGER_BYTES:
                message = await receive()
                if not message.get("more_body"):
                    break
                discarded += len(message["body"])
    await send({"type": "http.response.body"})


application = Guard(Handler())
