"""What a stranger can make a web process hold: raw sockets against the protocol, with its times made short."""

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
import uvicorn
from uvicorn.server import ServerState

from lyo import env, http
from lyo.http import Protocol
from tests.helpers import until

SHORT_S = 0.6


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the body's size; `/slow` after a while, `/stream` bit by bit, `/large` with a lot."""
    taken = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        taken += len(message["body"])
        if not message["more_body"]:
            break
    headers = [(name, value) for name, value in scope["headers"] if name.startswith(b"x-")]
    body = f"{taken} {dict(headers)}".encode()
    if scope["path"] == "/slow":
        await asyncio.sleep(4 * SHORT_S)
    if scope["path"] == "/large":
        body = b"x" * 2**26
    start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
    if scope["path"] == "/stream":
        start["headers"] = [(b"x-accel-buffering", b"no")]
        await send(start)
        for _ in range(8):
            await asyncio.sleep(SHORT_S)
            await send({"type": "http.response.body", "body": b"bit", "more_body": True})
        body = b"end"
    else:
        await send({**start, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(
        application, port=0, http=Protocol, lifespan="off", log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="protocol's server")
    thread.start()
    until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TICK_S", 0.1)
    for name in ("SILENCE_S", "HEAD_S", "BODY_S", "STALL_S", "LINGER_S"):
        monkeypatch.setattr(http, name, SHORT_S)


def connect(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(data)
    return connection


def said(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    got = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(2**16):
            got += data
    return bytes(got)


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 ")
    return int(answer.split()[1])


def sent_megabytes(connection: socket.socket, at_most: int) -> int:
    """How many megabytes of a flood are taken."""
    for megabyte in range(at_most):
        try:
            connection.sendall(b"x" * 2**20)
        except OSError:
            return megabyte
    return at_most


# --- heads ---


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\nX-A: ", b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX"])
def test_a_head_without_end_is_cut_off_and_costs_no_processor(port: int, begin: bytes) -> None:
    connection, before = connect(port, begin), time.process_time()
    assert sent_megabytes(connection, 100) < 30  # most of it is in the kernel's buffers
    assert time.process_time() - before < 1


def test_a_head_has_a_size_and_its_refusal_says_so(port: int) -> None:
    fits = connect(port, b"GET / HTTP/1.1\r\nX-A: " + b"b" * 60_000 + b"\r\nConnection: close\r\n\r\n")
    assert status(said(fits)) == 200
    too_large = said(connect(port, b"GET / HTTP/1.1\r\nX-A: " + b"b" * 70_000 + b"\r\n\r\n"))
    assert status(too_large) == 431
    assert too_large.endswith(b"A head may have 65536 bytes at most.")
    assert b"connection: close" in too_large


def test_the_second_head_of_a_connection_has_a_size_too(port: int) -> None:
    connection = connect(port, b"GET / HTTP/1.1\r\n\r\n")
    assert connection.recv(2**16)
    connection.sendall(b"GET / HTTP/1.1\r\nX-A: ")
    connection.sendall(b"b" * 500_000)
    assert status(said(connection)) == 431


def test_headers_are_counted(port: int) -> None:
    def ask(headers: int) -> int:
        lines = b"".join(b"X-%d: a\r\n" % n for n in range(headers - 1))
        return status(said(connect(port, b"GET / HTTP/1.1\r\nConnection: close\r\n" + lines + b"\r\n")))

    assert (ask(100), ask(101)) == (200, 431)


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nX-A: b", b"\r\n\r\n"])
def test_half_a_head_and_silence_are_closed(port: int, sent: bytes) -> None:
    answer = said(connect(port, sent))
    assert not answer or status(answer) == 408


def test_a_head_that_comes_byte_by_byte_is_closed(port: int) -> None:
    connection, start = connect(port, b"GET / HTTP/1.1\r\nX-A: "), time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - start < 10:
            connection.sendall(b"b")
            time.sleep(0.05)
    assert time.monotonic() - start < 4 * SHORT_S + 2


def test_a_connection_that_is_kept_alive_in_silence_is_closed(port: int) -> None:
    connection = connect(port, b"GET / HTTP/1.1\r\n\r\n")
    assert status(said(connection)) == 200  # and `said` returns only when it is closed


# --- bodies ---


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_half_a_body_is_closed(port: int, framing: bytes) -> None:
    answer = said(connect(port, b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n5\r\nhello\r\n"))
    assert status(answer) == 408
    assert answer.endswith(b"The body came too slowly.")


def test_a_body_that_trickles_is_closed_and_one_with_a_pace_is_not(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_PACE", 100)

    def send(piece: int) -> int:
        connection = connect(port, b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 400\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(0, 400, piece):
                connection.sendall(b"x" * piece)
                time.sleep(0.1)
        return status(said(connection))

    assert (send(20), send(4)) == (200, 408)


def test_a_body_in_chunks_of_a_byte_is_refused(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status(said(connect(port, head + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n"))) == 200
    assert status(said(connect(port, head + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"))) == 400
    assert status(said(connect(port, head + b"1;a=" + b"b" * 400_000 + b"\r\nx\r\n0\r\n\r\n"))) == 400


def test_a_body_of_which_much_is_read_at_once_is_not_too_finely_chunked() -> None:
    async def receive() -> tuple[Any, int]:
        config = uvicorn.Config(application, http=Protocol, lifespan="off")
        config.load()
        protocol = Protocol(config=config, server_state=ServerState(), app_state={})
        protocol.connection_made(MagicMock(**{"get_extra_info.return_value": None}))
        protocol.data_received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        protocol.data_received((b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 4)
        protocol.connection_lost(None)
        return protocol.refusal, protocol.body_bytes

    assert asyncio.run(receive()) == (None, 4 * 0x10000)


def test_a_trailer_is_no_header(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
    answer = said(connect(port, head + b"3\r\nxyz\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"))
    assert answer.endswith(b"3 {b'x-a': b'b'}")


# --- what takes long and is right ---


def test_an_answer_may_take_long_to_begin(port: int) -> None:
    assert status(said(connect(port, b"GET /slow HTTP/1.1\r\n\r\n"))) == 200


def test_a_stream_goes_on_while_the_client_is_silent(port: int) -> None:
    answer = said(connect(port, b"GET /stream HTTP/1.1\r\n\r\n"))
    assert answer.count(b"bit") == 8
    assert b"end" in answer


def test_an_answer_after_a_long_one_is_not_held_against_the_client(port: int) -> None:
    connection = connect(port, b"GET /slow HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nX-A: ")
    assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
    connection.sendall(b"b\r\nConnection: close\r\n\r\n")
    assert said(connection).endswith(b"{b'x-a': b'b'}")


def test_a_client_that_takes_nothing_of_its_answer_is_closed(port: int) -> None:
    connection = connect(port, b"GET /large HTTP/1.1\r\n\r\n")
    until(lambda: Protocol.by_address["127.0.0.1"])
    until(lambda: not Protocol.by_address["127.0.0.1"])
    assert len(said(connection)) < 2**26


def test_a_client_that_takes_its_answer_slowly_gets_it_whole(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALL_S", 3.0)
    connection, got = connect(port, b"GET /large HTTP/1.1\r\nConnection: close\r\n\r\n"), 0
    for _ in range(16):
        got += len(connection.recv(2**22))
        time.sleep(0.25)
    got += len(said(connection))
    assert got > 2**26


# --- connections ---


def test_connections_are_bounded_by_address_and_in_all(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    until(lambda: not Protocol.by_address)

    def another() -> bytes:
        return said(connect(port, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"))

    monkeypatch.setattr(http, "SILENCE_S", 60)
    monkeypatch.setattr(env, "CONNECTIONS_PER_ADDRESS", 2)
    kept = [connect(port), connect(port)]
    until(lambda: Protocol.by_address["127.0.0.1"] == 2)
    answer = another()
    assert status(answer) == 429
    assert b"retry-after: 5\r\n" in answer
    monkeypatch.setattr(http, "TOLD", 0)
    assert another() == b""
    monkeypatch.setattr(http, "TOLD", 64)
    monkeypatch.setattr(env, "TRUSTED_PROXIES", 1)  # all come from the proxy, which counts them itself
    assert status(another()) == 200
    monkeypatch.setattr(env, "MAX_CONNECTIONS", 2)
    assert status(another()) == 503
    for connection in kept:
        connection.close()
    until(lambda: not Protocol.by_address)
    assert status(another()) == 200


@pytest.mark.parametrize(("hard", "files"), [(2000, 2000), (8000, 4096 + 256)])
def test_a_process_may_have_as_many_files_as_connections(hard: int, files: int) -> None:
    code = "import resource; from lyo import http; print(http.FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    limited = ["prlimit", f"--nofile=300:{hard}", sys.executable, "-c", code]
    done = subprocess.run(limited, capture_output=True, text=True, cwd=env.BASE_DIR)
    assert done.stdout == f"{files} {files}\n", done.stderr


def test_refusals_are_counted(port: int) -> None:
    def count() -> float:
        return next(s.value for m in http.REFUSED.collect() for s in m.samples if s.labels.get("status") == "431")

    said(connect(port, b"GET / HTTP/1.1\r\nX-A: " + b"b" * 70_000 + b"\r\n\r\n"))
    before = count()
    said(connect(port, b"GET / HTTP/1.1\r\nX-A: " + b"b" * 70_000 + b"\r\n\r\n"))
    assert count() == before + 1


def test_what_is_not_http_is_400(port: int) -> None:
    assert re.match(
        rb"HTTP/1.1 400 .*Invalid HTTP request received.\Z", said(connect(port, b"\x16\x03\x01\r\n")), re.DOTALL
    )
