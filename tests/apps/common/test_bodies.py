"""Bodies are counted while they come, before anybody knows whose they are: raw sockets against the real application."""

import contextlib
import json
import socket
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from django.conf import settings as django_settings
from django.test import Client

from apps.users.models import Role, User
from apps.users.services import token_create
from lyo import asgi, env
from tests.apps.conftest import PASSWORD
from tests.helpers import until

pytestmark = pytest.mark.django_db(transaction=True)

MB = 2**20
UPLOADS = ("/v1/files", "/api/v1/training/adapters")
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def staff(transactional_db: None) -> str:
    user = User.objects.create_user("grace", "grace@example.org", PASSWORD, role=Role.STAFF, is_superuser=True)
    return token_create(user=user)[1]


@pytest.fixture
def spooled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what was written to the temporary folder."""
    sizes: list[int] = []
    rollover = tempfile.SpooledTemporaryFile.rollover

    def counted(self: Any) -> None:
        sizes.append(self.tell())
        rollover(self)

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", counted)
    return sizes


def flood(live: str, path: str, framing: str, megabytes: int = 100, token: str = "") -> tuple[int, int]:
    """How many megabytes of a body are taken, and the status of the answer; 0 where there is none."""
    address = urlsplit(live)
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nHost: {address.hostname}\r\n{bearer}{framing}\r\n\r\n"
    taken, answer = 0, b""
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:  # type: ignore[arg-type]
        with contextlib.suppress(OSError):
            connection.sendall(head.encode())
            for _ in range(megabytes):
                connection.sendall(b"%x\r\n" % MB + b"x" * MB + b"\r\n" if "chunked" in framing else b"x" * MB)
                taken += 1
        with contextlib.suppress(OSError):
            answer = connection.recv(2**16)
    return taken, int(answer.split()[1]) if answer else 0


@pytest.mark.parametrize("framing", [f"Content-Length: {100 * MB}", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", ["/livez", "/nothing", "/static/x", "/api/v1/auth/login", "/admin/login/", *UPLOADS])
def test_a_strangers_large_body_is_cut_off_and_never_reaches_a_disk(
    live: str, transactional_db: None, spooled: list[int], path: str, framing: str
) -> None:
    taken, status = flood(live, path, framing)
    assert taken < 16
    assert status in (0, 401, 413)
    assert spooled == []


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("path", "attr"), [("/api/v1/me", "errors"), ("/v1/chat/completions", "error")])
@pytest.mark.parametrize(
    ("known", "status", "code", "words"),
    [
        (True, 413, "request_too_large", "A request body may have 2 MB at most."),
        (False, 401, "not_authenticated", "Only who is logged in may send more than 64 KB."),
    ],
)
def test_a_body_past_the_limit_is_refused_in_the_form_of_its_api(
    live: str, token: str, path: str, attr: str, chunked: bool, known: bool, status: int, code: str, words: str
) -> None:
    pieces = [b" " * (MB if known else 50_000)] * 3
    headers = {**JSON, **({"Authorization": f"Bearer {token}"} if known else {})}
    answer = httpx.post(f"{live}{path}", content=iter(pieces) if chunked else b"".join(pieces), headers=headers)
    assert answer.status_code == status
    assert answer.headers["Connection"] == "close"
    error = answer.json()[attr]
    error = error[0] if attr == "errors" else error
    assert (error["code"], error.get("detail") or error["message"]) == (code, words)


def test_the_limits_are_exact(live: str, token: str) -> None:
    def ask(size: int, chunked: bool) -> int:
        body = b'{"level": "beginner"}'.ljust(size)
        headers = {**JSON, "Authorization": f"Bearer {token}"}
        return httpx.patch(f"{live}/api/v1/me", content=iter([body]) if chunked else body, headers=headers).status_code

    def register(size: int, chunked: bool) -> int:
        body = b"{}".ljust(size)
        content = iter([body]) if chunked else body
        return httpx.post(f"{live}/api/v1/auth/register", content=content, headers=JSON).status_code

    of_strangers = 64 * 1024
    assert [register(of_strangers, chunked) for chunked in (False, True)] == [400, 400]
    assert [register(of_strangers + 1, chunked) for chunked in (False, True)] == [401, 401]
    limit = env.MAX_BODY_MB * MB
    assert [ask(limit, False), ask(limit, True), ask(limit + 1, False), ask(limit + 1, True)] == [200, 200, 413, 413]


def test_a_user_sends_few_large_bodies_at_a_time(live: str, token: str) -> None:
    address = urlsplit(live)
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 100000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(asgi.LARGE_AT_ONCE):
            connection = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=20))  # type: ignore[arg-type]
            connection.sendall(head.encode())
        until(lambda: list(asgi.application.large.values()) == [asgi.LARGE_AT_ONCE])
        headers = {"Authorization": f"Bearer {token}", **JSON}
        answer = httpx.post(f"{live}/v1/embeddings", content=b" " * 100_000, headers=headers)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")
        assert httpx.get(f"{live}/api/v1/me", headers=headers).status_code == 200
    until(lambda: not asgi.application.large)
    assert httpx.post(f"{live}/v1/embeddings", content=b" " * 100_000, headers=headers).status_code == 400


@pytest.mark.parametrize("pieces", [[b'{"username": "ada",', b' "password": "' + PASSWORD.encode() + b'"}'], []])
def test_a_chunked_body_is_read_like_any_other(live: str, learner: User, pieces: list[bytes]) -> None:
    answer = httpx.post(f"{live}/api/v1/auth/login", content=iter(pieces), headers=JSON)
    assert answer.status_code == (200 if pieces else 400)


def test_a_file_in_chunks_is_read_like_any_other(live: str, staff: str) -> None:
    line = json.dumps({"messages": [{"role": r, "content": f"{r} says"} for r in ("user", "assistant")]})
    form = httpx.Request("POST", live, data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", line.encode())})
    headers = {"Content-Type": form.headers["Content-Type"], "Authorization": f"Bearer {staff}"}
    answer = httpx.post(f"{live}/v1/files", content=iter([form.read()]), headers=headers)
    assert (answer.status_code, answer.json().get("bytes")) == (200, len(line))


@pytest.mark.parametrize("path", UPLOADS)
@pytest.mark.parametrize(
    ("sender", "status"), [("stranger", 401), ("liar", 401), ("learner", 403), ("staff", 400), ("session", 0)]
)
def test_only_who_may_use_it_may_send_a_large_file(
    live: str, staff: str, token: str, path: str, sender: str, status: int
) -> None:
    tokens = {"liar": "x", "learner": token, "staff": staff}
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    if sender in tokens:
        headers["Authorization"] = f"Bearer {tokens[sender]}"
    if sender == "session":
        client = Client()
        client.force_login(User.objects.get(username="grace"))
        headers["Cookie"] = f"{django_settings.SESSION_COOKIE_NAME}={client.cookies['sessionid'].value}"
        status = 401  # the guard lets it in; the API wants a token
    answer = httpx.post(f"{live}{path}", content=b"x" * 3 * MB, headers=headers, timeout=20)
    assert answer.status_code == status
    if sender != "session":
        assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)


@pytest.mark.parametrize("framing", [f"Content-Length: {100 * MB}", "Transfer-Encoding: chunked"])
def test_a_file_has_its_own_limit(live: str, staff: str, framing: str) -> None:
    taken, status = flood(live, "/v1/files", framing, token=staff)
    assert taken < env.MAX_FILE_MB + 16
    assert status in (0, 413)


def test_the_admins_forms_take_files_of_staff_alone(live: str, staff: str) -> None:
    def send(cookies: dict[str, str]) -> int:
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        body = b"--x\r\n\r\n" + b"x" * 3 * MB + b"\r\n--x--\r\n"
        return httpx.post(f"{live}/admin/login/", content=body, headers=form, cookies=cookies, timeout=20).status_code

    client = Client()
    client.force_login(User.objects.get(username="grace"))
    assert send({}) == 401
    assert send({"sessionid": "forged"}) == 401
    assert send({"sessionid": client.cookies["sessionid"].value}) != 401


@pytest.mark.parametrize("key", [r'"\000bcdefghijklmnop"', "x" * 32, "\xff" * 32, "X", ""])
@pytest.mark.parametrize(
    ("path", "size", "status"), [("/livez", 0, 200), ("/api/v1/me", 0, 401), ("/v1/files", MB, 401)]
)
def test_a_session_of_any_form_that_is_none_is_a_stranger_s(
    live: str, transactional_db: None, key: str, path: str, size: int, status: int
) -> None:
    headers = {"Cookie": f"sessionid={key}".encode("latin-1")}
    answer = httpx.request("POST" if size else "GET", f"{live}{path}", headers=headers, content=b"x" * size)
    assert answer.status_code == status


@pytest.fixture
def no_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from django.db import OperationalError

    from lyo import asgi

    def away(scope: Any) -> None:
        raise OperationalError("away")

    monkeypatch.setattr(asgi, "_sender", away)
    yield


def test_a_large_file_while_the_database_is_away_is_503(live: str, no_database: None) -> None:
    answer = httpx.post(f"{live}/v1/files", content=b"x" * 3 * MB, timeout=20)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")
    assert answer.headers["Retry-After"] == "2"


@pytest.mark.parametrize(
    "path", ["/api/v1/training/routes/%00", "/v1/models/a%00b", "/api/v1/content/items/%00", "/%00"]
)
def test_a_path_with_a_nul_character_is_not_found(live: str, staff: str, path: str) -> None:
    answer = httpx.get(f"{live}{path}", headers={"Authorization": f"Bearer {staff}"}, timeout=20)
    assert answer.status_code == 404
