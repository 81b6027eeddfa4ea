"""The token stream of a job: the log of what its client has been sent, in one Redis Stream.

An entry holds the token ids and the text of one engine step. Its id is `<offset>-0`, where `offset` counts the
characters of the answer up to its end; the same number is the SSE id. So a reader may resume at any offset, from the
stream or from the stored text, and it does not matter how the text was cut into entries.

Beside the stream stands a hash: `attempt` fences a writer that was presumed dead, `offset` makes a repeated write
harmless, `sealed` refuses any more. A key of short life says that somebody is reading.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError, InterfaceError, connection
from django.http import StreamingHttpResponse
from redis.client import Pipeline
from redis.exceptions import RedisError

from apps.common import redis
from apps.common.streaming import release_connection
from apps.jobs.models import Job, State
from lyo import env

logger = structlog.get_logger(__name__)

READER_TTL_S = 5  # a reader renews its mark each second
CAP = 16_384  # entries; more than any answer has tokens
TERMINAL_EVENTS = {State.SUCCEEDED: "done", State.CANCELLED: "cancelled", State.FAILED: "error", State.ERRORED: "error"}
BLOCK_MS = 1_000
SEALED, FENCED = -1, -2  # replies of APPEND
ROW_CHECK_S = 2.0  # how often a reader of a silent stream looks whether the row has ended

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


async def follow(job: Job, after: int = 0) -> AsyncIterator[Entry | KeepAlive | Ended]:
    """Yield what the answer has past offset `after`, as it comes, and then its ended row, whatever happens to Redis.

    The caller must have given its database connection back: between entries none is held.
    """
    stream, _, reader = _keys(job.id)
    client = redis.async_broker()
    spoke = checked = time.monotonic()
    marked = 0.0
    while not job.is_terminal:
        try:
            if time.monotonic() - marked > 1:
                await client.set(reader, 1, ex=READER_TTL_S)
                marked = time.monotonic()
            reply = await client.xread({stream: f"{after}-0"}, block=BLOCK_MS, count=CAP)
        except RedisError as error:
            logger.warning("stream unreachable", job_id=str(job.id), error=error)
            await asyncio.sleep(BLOCK_MS / 1000)
            reply = []
        ended = False
        for ident, fields in reply[0][1] if reply else ():
            ended = "end" in fields
            if not ended:
                entry = Entry.load(int(ident.partition("-")[0]), fields["d"]).past(after)
                after = entry.end
                yield entry
                spoke = time.monotonic()
        now = time.monotonic()
        if ended or (not reply and now - checked > ROW_CHECK_S):
            checked = now
            job = await _reload(job)
            if ended and not job.is_terminal:  # Postgres is away: the end stays readable, and would be read at once
                await asyncio.sleep(BLOCK_MS / 1000)
        if now - spoke > env.KEEP_ALIVE_S:
            spoke = now
            yield KeepAlive()
    text = (job.result or {}).get("text", "")
    if len(text) > after:
        yield Entry(after, len(text), [], text[after:])
    yield Ended(job)


async def wait(job: Job) -> Job:
    """The row once it has ended."""
    async for event in follow(job):
        if isinstance(event, Ended):
            job = event.job
    return job


def response(job: Job, after: int = 0) -> StreamingHttpResponse:
    """The job's answer as server-sent events: `token` with `{"text"}`, then one of `done`, `error`, `cancelled`."""
    release_connection()
    return event_stream(_events(job, after))


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


async def _events(job: Job, after: int) -> AsyncIterator[str]:
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
    """What the last event says; the text is left out, for it was streamed."""
    result = {key: value for key, value in (job.result or {}).items() if key != "text"}
    return {"job": str(job.id), **(job.error or {}), **result}


@sync_to_async
def _reload(job: Job) -> Job:
    """The row as it is now; the old one when Postgres does not answer, a cancelled one when it was erased."""
    try:
        return Job.objects.filter(id=job.id).first() or Job(id=job.id, state=State.CANCELLED)
    except (DatabaseError, InterfaceError) as error:
        logger.warning("row unreachable", job_id=str(job.id), error=error)
        return job
    finally:
        connection.close()  # back to the pool: an open stream must not hold one
