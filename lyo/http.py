"""The HTTP protocol of a web process: uvicorn's on httptools, with bounds on what a stranger can make it hold.

httptools parses fast and bounds nothing: a header without end, half a request and a silent connection were kept for
ever. Here a head has a size, a count and a time; a body comes at a pace; silence, and a client that takes nothing of
its answer, end the connection. An answer may take as long as it likes to begin, and a stream to go on. How large a body
may be is known one floor up (`lyo.asgi`), where it is known what is asked and by whom.
"""

import resource
from collections import Counter
from http import HTTPStatus
from typing import ClassVar

from prometheus_client import Counter as Metric
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from apps.common import stopping
from apps.common.addresses import group_of
from lyo import env

REFUSED = Metric("lyo_http_refused", "Connections that ended in the protocol's own refusal.", ["status"])

HEAD_BYTES = 2**16  # request line and headers, and once more what frames a chunked body
PIPELINED = 8  # requests of a connection that came before earlier ones were answered
HEADERS = 100
TICK_S = 2.0  # how often a connection is looked at
SILENCE_S = 20.0  # without the first byte of a request
HEAD_S = 20.0  # from the first byte of a head to its last
BODY_S = 20.0  # how far a body may lag behind BODY_PACE
BODY_PACE = 8_192  # bytes a second
STALL_S = 30.0  # in which a client takes nothing of what is waiting for it
LINGER_S = 5.0  # for which a refused client may go on sending: who is cut off at once never reads why
LINGER_BYTES = 2**18
RETRY_AFTER_S = 5
TOLD = 64  # connections past a limit that are told why; those past these are only closed
SPARE_FILES = 256  # open files of a process that are no connections of clients


def _allow_files(wanted: int) -> int:
    """Raise the limit of open files to `wanted`, or to the most that is allowed; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


# Without a file for it a connection is not even refused, and everybody's wait.
FILES = _allow_files(env.MAX_CONNECTIONS + SPARE_FILES)


class Refused(Exception):
    """Ends the parsing of what a client sends."""


class Protocol(HttpToolsProtocol):
    """One connection. `reading` is what is being read of a request: "head", "body", or nothing yet."""

    by_address: ClassVar[Counter[str]] = Counter()  # open connections of this process

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]
        super().connection_made(transport)
        self.reading = ""
        self.since = self.progress = self.loop.time()  # of `reading`; of the client's last reading
        self.unsent = 0
        self.taken = self.discarded = 0
        self.refusal: tuple[HTTPStatus, str] | None = None
        self.timer = self.loop.call_later(TICK_S, self._look)
        self.address = group_of(self.client[0] if self.client else "")
        self.by_address[self.address] += 1
        over = len(self.connections) - min(env.MAX_CONNECTIONS, FILES - SPARE_FILES)
        mine = 0 if env.TRUSTED_PROXIES else self.by_address[self.address] - env.CONNECTIONS_PER_ADDRESS
        if max(over, mine) > TOLD:
            self.transport.abort()
        elif over > 0:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections are open.")
        elif mine > 0:
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, "Too many connections are open from your address.")

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        self.by_address[self.address] -= 1
        if not self.by_address[self.address]:
            del self.by_address[self.address]
        super().connection_lost(exc)

    # --- what comes ---

    def data_received(self, data: bytes) -> None:
        if self.refusal:
            self.discarded += len(data)
            if self.discarded > LINGER_BYTES:
                self.transport.abort()
            return
        self.taken += len(data)
        super().data_received(data)
        if self.reading == "head" and self.taken > HEAD_BYTES and not self.refusal:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A head may have {HEAD_BYTES} bytes at most.")
        if self.reading == "body" and self.taken - self.body_bytes > HEAD_BYTES + self.body_bytes and not self.refusal:
            self._refuse(HTTPStatus.BAD_REQUEST, "The body is chunked too finely.")

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when parsing has failed; a callback below may have said why."""
        self._refuse(*(self.refusal or (HTTPStatus.BAD_REQUEST, msg)))

    def on_message_begin(self) -> None:
        self.reading, self.since = "head", self.loop.time()
        self.taken = self.head_bytes = self.fields = self.body_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields += 1
        self._count(len(name) + len(value))
        if self.reading == "head":  # later ones are trailers of a chunked body: whoever checked the head missed them
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.reading, self.since, self.taken = "body", self.loop.time(), 0
        if len(self.pipeline) >= PIPELINED:
            self._stop(HTTPStatus.TOO_MANY_REQUESTS, f"At most {PIPELINED} requests may wait for earlier answers.")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.reading, self.since = "", self.loop.time()
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self.head_bytes += size
        if self.head_bytes > HEAD_BYTES:
            self._stop(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A head may have {HEAD_BYTES} bytes at most.")
        if self.fields > HEADERS:
            self._stop(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"A head may have {HEADERS} headers at most.")

    def _stop(self, status: HTTPStatus, why: str) -> None:
        self.refusal = status, why
        raise Refused

    # --- what does not come ---

    def _look(self) -> None:
        self.timer = self.loop.call_later(TICK_S, self._look)
        now = self.loop.time()
        waited = now - self.since
        unsent = self.transport.get_write_buffer_size()
        if unsent < self.unsent or not unsent or not (self.flow.write_paused or self.transport.is_closing()):
            self.progress = now
        self.unsent = unsent
        if self.refusal:
            if waited > LINGER_S:
                self.transport.abort()
        elif now - self.progress > STALL_S:
            self.transport.abort()
        elif self.reading == "body":
            if waited > BODY_S + self.body_bytes / BODY_PACE and not self.flow.read_paused:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The body came too slowly.")
        elif self.cycle and not self.cycle.response_complete:
            self.since = now  # an answer is awaited or sent, for as long as it takes
        elif self.reading == "head":
            if waited > HEAD_S:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The head came too slowly.")
        elif waited > SILENCE_S:
            self.transport.close()

    def on_response_complete(self) -> None:
        if self.reading == "body":  # answered before it was asked whole: the rest is not read
            self.transport.close()
        self.since = self.loop.time()
        super().on_response_complete()

    # --- the end ---

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        """Answer in the protocol's own name, and close, a little later for a client that is still sending."""
        self.refusal, self.since = (status, why), self.loop.time()
        REFUSED.labels(int(status)).inc()
        if self.cycle and not self.cycle.response_complete:
            begun = self.cycle.response_started or self.reading != "body"  # else the answer would be another's
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if begun:
                self.transport.abort()
                return
        retry = f"retry-after: {RETRY_AFTER_S}\r\n" if status in (429, 503) else ""
        head = f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(why)}\r\nconnection: close\r\n{retry}"
        self.transport.write(STATUS_LINE[status] + f"{head}\r\n{why}".encode())
        self.transport.write_eof()
        self.flow.resume_reading()

    def shutdown(self) -> None:
        stopping.begin()
        super().shutdown()
