"""One reader of token streams for each process, however many streams there are and however many listen.

It waits on Redis with one connection for all streams that somebody here follows, and keeps what it has read of each as
long as anybody does. So who comes late reads what is here already, and 300 readers of one answer cost Redis what one
does. Everything belongs to the event loop that it was begun on.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError, InterfaceError, connection
from redis.exceptions import RedisError

from apps.common import redis, stopping
from apps.common.places import Place
from apps.jobs.models import TERMINAL, Job, State

logger = structlog.get_logger(__name__)

BLOCK_MS = 1_000
COUNT = 1_000  # entries of one stream at a time, so that a long one does not hold up the others
MARK_S = 1.0  # how often streams are marked as read
READER_TTL_S = 5  # of that mark
ROW_CHECK_S = 2.0  # how often it is looked whether the row of a silent stream has ended
WAKE_TTL_S = 60
PLACES_S = 5.0  # how often places are renewed


class Channel:
    """What was read of one stream, and the ended row once there is one."""

    def __init__(self, stream: str, reader: str) -> None:
        self.stream, self.reader = stream, reader
        self.position = "0-0"
        self.rows: list[tuple[int, str]] = []  # end of each entry, and its data
        self.ending = False  # its end was read, but not its row
        self.ended: Job | None = None
        self.heard = time.monotonic()
        self.listeners = 0
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """Wake all that wait."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, seconds: float) -> None:
        """Wait for news, but not longer. Nothing may be awaited between looking for news and this."""
        await _wait(self._changed, seconds)


class Relay:
    """Reads the streams of all channels, marks them as read, and finds out which rows have ended.

    It also keeps the places of those who follow, and gives them back.
    """

    def __init__(self) -> None:
        self.channels: dict[UUID, Channel] = {}
        self.stopping = False
        self._names: dict[str, Channel] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake, self._woken = f"lyo:relay:{uuid4()}", "0-0"
        self._is_new = False  # a channel that the reader does not know
        self._row_wanted = asyncio.Event()
        self._places: set[Place] = set()
        self._left: list[Place] = []
        self._leaving = asyncio.Event()

    @contextmanager
    def listening(self, job_id: UUID, stream: str, reader: str) -> Iterator[Channel]:
        """The channel of a job, as long as the caller listens."""
        channel = self.channels.get(job_id)
        if channel is None:
            channel = self.channels[job_id] = self._names[stream] = Channel(stream, reader)
            self._is_new = True
            for task in (self._read, self._wake_reader, self._find_ended):
                self._begin(task)
        channel.listeners += 1
        try:
            yield channel
        finally:
            channel.listeners -= 1
            if not channel.listeners:
                del self.channels[job_id], self._names[stream]

    @contextmanager
    def holding(self, place: Place) -> Iterator[None]:
        """Keep the place, and give it back in the end."""
        self._places.add(place)
        self._begin(self._tend_places)
        try:
            yield
        finally:
            self.leave(place)

    def leave(self, place: Place) -> None:
        """Give the place back."""
        self._places.discard(place)
        self._left.append(place)
        self._leaving.set()
        self._begin(self._tend_places)

    def stop(self) -> None:
        """Have all listeners see `stopping`."""
        self.stopping = True
        for channel in self.channels.values():
            channel.tell()

    def _begin(self, task: Callable[[], Awaitable[None]]) -> None:
        """Have the task run, once, outside the context of the request that was the first to need it."""
        running = self._tasks.get(task.__name__)
        if running is None or running.done():
            loop = asyncio.get_running_loop()
            self._tasks[task.__name__] = loop.create_task(self._guarded(task), context=contextvars.Context())

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run the task, and again where one stream's fault would have ended the reading of all."""
        while True:
            try:
                return await task()
            except RedisError as error:
                logger.warning("streams unreachable", streams=len(self.channels), error=error)
            except Exception:
                logger.exception("relay failed", task=task.__name__)
            await asyncio.sleep(BLOCK_MS / 1000)

    # --- Redis ---

    async def _read(self) -> None:
        client, marked = redis.async_broker(), 0.0
        while self.channels:
            if self._is_new or time.monotonic() - marked > MARK_S:
                marked, self._is_new = time.monotonic(), False
                async with client.pipeline(transaction=False) as pipe:
                    for channel in self.channels.values():
                        pipe.set(channel.reader, 1, ex=READER_TTL_S)
                    await pipe.execute()
            positions = {channel.stream: channel.position for channel in self.channels.values()}
            reply = await client.xread({self._wake: self._woken, **positions}, block=BLOCK_MS, count=COUNT)
            for name, rows in reply or ():
                if name == self._wake:
                    self._woken = rows[-1][0]
                elif name in self._names:
                    self._take(self._names[name], rows)

    async def _wake_reader(self) -> None:
        """End the reader's wait, which knows nothing of a new stream: it would find it a second later."""
        while self._is_new and self.channels:
            async with redis.async_broker().pipeline() as pipe:
                await pipe.xadd(self._wake, {"w": 1}, maxlen=1).expire(self._wake, WAKE_TTL_S).execute()
            await asyncio.sleep(0.005)

    def _take(self, channel: Channel, rows: list[tuple[str, dict[str, str]]]) -> None:
        channel.position, channel.heard = rows[-1][0], time.monotonic()
        for ident, fields in rows:
            if "d" in fields:
                channel.rows.append((int(ident.partition("-")[0]), fields["d"]))
            else:
                channel.ending = True
                self._row_wanted.set()
        channel.tell()

    async def _tend_places(self) -> None:
        while self._places or self._left:
            left, self._left = self._left, []
            self._leaving.clear()
            await Place.keep(self._places, left)
            await _wait(self._leaving, PLACES_S)

    # --- Postgres ---

    async def _find_ended(self) -> None:
        """Get the rows of streams that have ended, at once, and ask after those of silent ones now and then."""
        while self.channels:
            await _wait(self._row_wanted, ROW_CHECK_S)
            self._row_wanted.clear()
            now = time.monotonic()
            asked = []
            for ident, channel in self.channels.items():
                if not channel.ended and (channel.ending or now - channel.heard > ROW_CHECK_S / 2):
                    channel.heard = now
                    asked.append(ident)
            for job in await _ended(asked) if asked else ():
                if channel_ended := self.channels.get(job.id):
                    channel_ended.ended = job
                    channel_ended.tell()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


@sync_to_async(thread_sensitive=False)
def _ended(ids: list[UUID]) -> list[Job]:
    """Those of the rows that have ended, and a cancelled one for each that was erased; none where Postgres is away."""
    try:
        states = dict(Job.objects.filter(id__in=ids).values_list("id", "state"))
        ended = list(Job.objects.filter(id__in=[ident for ident, state in states.items() if state in TERMINAL]))
    except (DatabaseError, InterfaceError) as error:
        logger.warning("rows unreachable", rows=len(ids), error=error)
        return []
    finally:
        connection.close()  # back to the pool: an open stream must not hold one
    return ended + [Job(id=ident, state=State.CANCELLED) for ident in ids if ident not in states]


_relays: WeakKeyDictionary[asyncio.AbstractEventLoop, Relay] = WeakKeyDictionary()


def relay() -> Relay:
    """The running event loop's."""
    loop = asyncio.get_running_loop()
    if loop not in _relays:
        _relays[loop] = Relay()
    return _relays[loop]


stopping.on_stop(lambda: relay().stop())
