"""The token stream of a job: the log of what its client has been sent, in one Redis Stream.

An entry holds the token ids and the text of one engine step. Its id is `<offset>-0`, where `offset` counts the
characters of the answer up to its end; the same number is the SSE id. So a reader may resume at any offset, from the
stream or from the stored text, and it does not matter how the text was cut into entries.

Beside the stream stands a hash: `attempt` fences a writer that was presumed dead, `offset` makes a repeated write
harmless, `sealed` refuses any more. A key of short life says that somebody is reading.
"""

import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from django.http import StreamingHttpResponse
from redis.client import Pipeline
from redis.exceptions import RedisError

from apps.common import redis
from apps.common.errors import ServiceUnavailable
from apps.common.places import Place
from apps.common.streaming import release_connection
from apps.jobs.models import Job, State
from apps.jobs.relay import relay
from apps.users.models import User
from lyo import env

logger = structlog.get_logger(__name__)

LARGE = ("logprobs", "vectors")  # parts of results that only the answer itself has
UNTOLD = ("text", *LARGE)
CAP = 16_384  # entries; more than any answer has tokens
TERMINAL_EVENTS = {State.SUCCEEDED: "done", State.CANCELLED: "cancelled", State.FAILED: "error", State.ERRORED: "error"}
SEALED, FENCED = -1, -2  # replies of APPEND
RESTARTING = "The server is being restarted: ask again."

# KEYS stream, hash, reader. ARGV attempt, start, end, data, ttl, cap. Returns {offset | SEALED | FENCED, is read}.
APPEND = """
local state = redis.call('HMGET', KEYS[2], 'attempt', 'offset', 'sealed')
if state[3] then return {-1, 0} end
if tonumber(state[1] or '0') > tonumber(ARGV[1]) then return {-2, 0} end
local offset = tonumber(state[2] or '0')
if offset == tonumber(ARGV[2]) and tonumber(ARGV[3]) > offset then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[6], ARGV[3] .. '-0', 'd', ARGV[4])
  offset = tonumber(ARGV[3])
  redis.call('HSET', KEYS[2], 'attempt', ARGV[1], 'offset', offset)
  redis.call('EXPIRE', KEYS[1], ARGV[5])
  redis.call('EXPIRE', KEYS[2], ARGV[5])
end
return {offset, redis.call('EXISTS', KEYS[3])}
"""

# KEYS hash. ARGV attempt, ttl. Returns 1 if the attempt may write.
CLAIM = """
local state = redis.call('HMGET', KEYS[1], 'attempt', 'sealed')
if state[2] or tonumber(state[1] or '0') > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'attempt', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
"""

# KEYS stream, hash. ARGV ttl. Wakes the readers, once.
END = """
if redis.call('HSETNX', KEYS[2], 'ended', 1) == 0 then return end
redis.call('HSET', KEYS[2], 'sealed', 1)
local offset = redis.call('HGET', KEYS[2], 'offset') or '0'
redis.call('XADD', KEYS[1], offset .. '-1', 'end', 1)
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """Tokens and their text; `start` and `end` are character offsets in the answer."""

    start: int
    end: int
    token_ids: list[int]
    text: str
    logprobs: list[dict[str, Any]] | None = None

    @classmethod
    def load(cls, end: int, data: str) -> "Entry":
        ids, text, logprobs = json.loads(data)
        return cls(end - len(text), end, ids, text, logprobs)

    def past(self, offset: int) -> "Entry":
        """The part of the entry that somebody at `offset` has not seen."""
        if self.start >= offset:
            return self
        return Entry(offset, self.end, self.token_ids, self.text[offset - self.start :], self.logprobs)

    def dump(self) -> str:
        return json.dumps([self.token_ids, self.text, self.logprobs], ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Ended:
    """The last thing a reader gets: the row in its terminal state."""

    job: Job


class KeepAlive:
    """Nothing happened for a while."""


class Interrupted:
    """This process is being stopped, and the job goes on: the last thing a reader gets here."""


def _keys(job_id: UUID) -> tuple[str, str, str]:
    return f"lyo:stream:{job_id}", f"lyo:stream:{job_id}:state", f"lyo:stream:{job_id}:reader"


# --- writing (workers) ---


def entries(job_id: UUID) -> list[Entry]:
    """What was delivered so far."""
    return _loaded(redis.broker().xrange(_keys(job_id)[0]))


def claim(job_id: UUID, attempt: int) -> list[Entry]:
    """Shut out the writers of earlier attempts and return what they have delivered."""
    stream, state, _ = _keys(job_id)
    with redis.broker().pipeline() as pipe:
        return _loaded(pipe.eval(CLAIM, 1, state, attempt, env.STREAM_TTL_S).xrange(stream).execute()[1])


def _loaded(rows: list[tuple[str, dict[str, str]]]) -> list[Entry]:
    return [Entry.load(int(ident.partition("-")[0]), fields["d"]) for ident, fields in rows if "d" in fields]


def append(pipe: Pipeline, job_id: UUID, attempt: int, entry: Entry) -> None:
    """Queue one entry on `pipe`. The reply is `(offset, is read)`: where the stream now ends, or SEALED or FENCED."""
    pipe.eval(APPEND, 3, *_keys(job_id), attempt, entry.start, entry.end, entry.dump(), env.STREAM_TTL_S, CAP)


def seal(job_id: UUID) -> str:
    """Refuse further tokens; returns the text delivered until now ("" where Redis does not answer)."""
    try:
        with redis.broker().pipeline() as pipe:
            pipe.hset(_keys(job_id)[1], "sealed", 1).expire(_keys(job_id)[1], env.STREAM_TTL_S).execute()
        return "".join(entry.text for entry in entries(job_id))
    except RedisError as error:
        logger.warning("stream not sealed", job_id=str(job_id), error=error)
        return ""


def end(job_id: UUID) -> None:
    """Wake the readers after the row has ended. Best effort: a reader that hears nothing looks at the row."""
    try:
        redis.broker().eval(END, 2, *_keys(job_id)[:2], env.STREAM_TTL_S)
    except RedisError as error:
        logger.warning("stream not ended", job_id=str(job_id), error=error)


def delete(job_id: UUID) -> None:
    """Begin anew: what was delivered is gone, and may be written again."""
    redis.broker().delete(*_keys(job_id))


def erase(job_ids: Iterable[UUID]) -> None:
    """Delete what was delivered. A worker that is still at it writes no more: the streams stay sealed."""
    with redis.broker().pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            stream, state, reader = _keys(job_id)
            pipe.hset(state, "sealed", 1).expire(state, env.STREAM_TTL_S).delete(stream, reader)
        pipe.execute()


# --- reading (web) ---


async def follow(job: Job, after: int = 0) -> AsyncIterator[Entry | KeepAlive | Interrupted | Ended]:
    """Yield what the answer has past offset `after`, as it comes, and then its ended row, whatever happens to Redis.

    The caller must have given its database connection back: between entries none is held.
    """
    if not job.is_terminal:
        stream, _, reader = _keys(job.id)
        process = relay()
        spoke = time.monotonic()
        with process.listening(job.id, stream, reader) as channel:
            read = 0
            while True:
                while read < len(channel.rows):
                    end, data = channel.rows[read]
                    read += 1
                    if end > after:
                        yield Entry.load(end, data).past(after)
                        after, spoke = end, time.monotonic()
                if channel.ended:
                    job = channel.ended
                    break
                if process.stopping:
                    yield Interrupted()
                    return
                silent = time.monotonic() - spoke
                if silent < env.KEEP_ALIVE_S:
                    await channel.changed(env.KEEP_ALIVE_S - silent)
                else:
                    yield KeepAlive()
                    spoke = time.monotonic()
    text = (job.result or {}).get("text", "")
    if len(text) > after:
        yield Entry(after, len(text), [], text[after:])
    yield Ended(job)


async def wait(job: Job) -> Job:
    """The row once it has ended; raises `ServiceUnavailable` where this process is being stopped."""
    async for event in follow(job):
        match event:
            case Ended(job):
                return job
            case Interrupted():
                raise ServiceUnavailable(RESTARTING, code="restarting")
    return job


def reserve(user: User) -> AbstractContextManager[Place]:
    """A place among the user's open streams, given back on an exception; raises `TooManyRequests` past the limit.

    It is taken before what is followed is made, so that a refusal leaves nothing behind. Whoever follows then is
    `holding` it.
    """
    return Place.taken(user.pk, env.STREAMS_PER_USER)


def holding(place: Place) -> AbstractContextManager[None]:
    """Keep the place while somebody follows, and give it back in the end."""
    return relay().holding(place)


def leave(place: Place) -> None:
    """Give the place back before anybody was holding it."""
    relay().leave(place)


def response(job: Job, place: Place, after: int = 0) -> StreamingHttpResponse:
    """The job's answer as server-sent events: `token` with `{"text"}`, then one of `done`, `error`, `cancelled`."""
    release_connection()
    return event_stream(_events(job, place, after))


def event_stream(events: AsyncIterator[str]) -> StreamingHttpResponse:
    """A response of server-sent events that no proxy holds back."""
    answer = StreamingHttpResponse(events, content_type="text/event-stream")
    answer["Cache-Control"] = "no-cache"
    answer["X-Accel-Buffering"] = "no"  # nginx's way to say so
    return answer


def sse(data: dict[str, Any] | str, event: str = "", ident: str | int = "") -> str:
    """One server-sent event (WHATWG HTML, "Server-sent events")."""
    if not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False)
    head = (f"id: {ident}\n" if ident != "" else "") + (f"event: {event}\n" if event else "")
    return f"{head}data: {data}\n\n"


async def _events(job: Job, place: Place, after: int) -> AsyncIterator[str]:
    """What is interrupted ends without a terminal event: clients come back with the last id, as `retry` tells them."""
    with holding(place):
        yield "retry: 1000\n\n"
        async for event in follow(job, after):
            match event:
                case Entry():
                    after = event.end
                    yield sse({"text": event.text}, "token", after)
                case KeepAlive():
                    yield ": keep-alive\n\n"
                case Ended(job):
                    yield sse(terminal_data(job), TERMINAL_EVENTS[State(job.state)], after)


def terminal_data(job: Job) -> dict[str, Any]:
    """What the last event says; left out are the text, which was streamed, and what may be large."""
    result = {key: value for key, value in (job.result or {}).items() if key not in UNTOLD}
    return {"job": str(job.id), **(job.error or {}), **result}
