import asyncio
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync

from apps.common import redis
from apps.jobs import services, streams
from apps.jobs.models import Job, State
from apps.jobs.streams import Ended, Entry

pytestmark = pytest.mark.django_db(transaction=True)

HELLO = [Entry(0, 2, [10], "He"), Entry(2, 5, [11, 12], "llo"), Entry(5, 6, [13], "!")]


@pytest.fixture
def taken() -> services.Claim:
    job = services.job_create(kind="embed", request={}, keep=False)
    claim = services.job_claim(job_id=job.id, worker="w")
    assert claim is not None
    return claim


def append(claim: services.Claim, *entries: Entry, attempt: int = 1) -> list[int]:
    """Offsets (or refusals) that the stream answered with."""
    pipe = redis.broker().pipeline()
    for entry in entries:
        streams.append(pipe, claim.job.id, attempt, entry)
    return [offset for offset, _ in pipe.execute()]


def finish(claim: services.Claim, text: str = "Hello!") -> None:
    services.job_finish(claim=claim, state=State.SUCCEEDED, result={"text": text})


async def read(job: Job, after: int = 0, stop_at: int | None = None) -> tuple[str, int, list[object]]:
    """Text, last offset and everything that was yielded, up to the end or to offset `stop_at`."""
    text, seen = "", []
    async for event in streams.follow(job, after):
        seen.append(event)
        if isinstance(event, Entry):
            text, after = text + event.text, event.end
            if stop_at is not None and after >= stop_at:
                break
    return text, after, seen


def test_a_repeated_write_is_harmless_and_a_gap_is_answered_with_what_is_there(taken: services.Claim) -> None:
    assert append(taken, HELLO[0], HELLO[0], HELLO[1]) == [2, 2, 5]
    assert append(taken, Entry(9, 10, [14], "?")) == [5]
    assert streams.entries(taken.job.id) == HELLO[:2]


def test_a_successor_shuts_out_its_predecessor_and_sees_what_was_delivered(taken: services.Claim) -> None:
    append(taken, *HELLO[:2])
    assert streams.claim(taken.job.id, attempt=2) == HELLO[:2]
    assert append(taken, HELLO[2], attempt=1) == [streams.FENCED]
    assert append(taken, HELLO[2], attempt=2) == [6]


def test_a_reader_gets_every_entry_and_one_end(taken: services.Claim) -> None:
    append(taken, *HELLO)
    finish(taken)
    taken.job.state = State.RUNNING  # the reader came while it ran
    text, _, seen = async_to_sync(read)(taken.job)
    assert text == "Hello!"
    assert seen[:3] == HELLO
    assert [type(event) for event in seen[3:]] == [Ended]
    assert seen[3].job.state == State.SUCCEEDED


@pytest.mark.parametrize("dropped_at", range(7))
def test_a_reader_resumes_at_any_offset_even_inside_an_entry(taken: services.Claim, dropped_at: int) -> None:
    append(taken, *HELLO)
    finish(taken)
    late = Job.objects.get(id=taken.job.id)
    taken.job.state = State.RUNNING
    for job in (taken.job, late):  # from the stream, and from the stored text
        assert async_to_sync(read)(job, dropped_at)[0] == "Hello!"[dropped_at:]


def test_a_reader_that_comes_after_the_stream_expired_gets_the_stored_text(taken: services.Claim) -> None:
    append(taken, *HELLO)
    finish(taken)
    streams.delete(taken.job.id)
    text, offset, seen = async_to_sync(read)(Job.objects.get(id=taken.job.id))
    assert (text, offset, len(seen)) == ("Hello!", 6, 2)


def test_a_reader_whose_end_marker_was_lost_learns_the_end_from_the_row(taken: services.Claim) -> None:
    append(taken, *HELLO[:2])

    async def lose_the_marker() -> tuple[str, int, list[object]]:
        reading = asyncio.create_task(read(taken.job))
        await asyncio.to_thread(finish, taken)
        await asyncio.to_thread(streams.delete, taken.job.id)
        return await asyncio.wait_for(reading, 10)

    text, _, seen = async_to_sync(lose_the_marker)()
    assert text == "Hello!"
    assert isinstance(seen[-1], Ended)


def test_the_writer_hears_whether_anybody_reads(taken: services.Claim) -> None:
    pipe = redis.broker().pipeline()
    streams.append(pipe, taken.job.id, 1, HELLO[0])
    assert pipe.execute() == [[2, 0]]
    async_to_sync(read)(taken.job, stop_at=2)
    streams.append(pipe, taken.job.id, 1, HELLO[1])
    assert pipe.execute() == [[5, 1]]


def test_nothing_follows_the_end(taken: services.Claim) -> None:
    append(taken, HELLO[0])
    finish(taken, "He")
    assert append(taken, HELLO[1]) == [streams.SEALED]
    streams.end(taken.job.id)
    rows = redis.broker().xrange(f"lyo:stream:{taken.job.id}")
    assert [ident for ident, fields in rows if "end" in fields] == ["2-1"]


def test_an_unknown_stream_is_empty() -> None:
    assert streams.entries(uuid4()) == []
    assert streams.seal(uuid4()) == ""


def test_a_reader_of_an_erased_job_is_told_that_it_is_over(taken: services.Claim) -> None:
    append(taken, HELLO[0])

    async def erase_while_read() -> list[object]:
        reading = asyncio.create_task(read(taken.job))
        await asyncio.to_thread(Job.objects.all().delete)
        return (await asyncio.wait_for(reading, 10))[2]

    assert async_to_sync(erase_while_read)()[-1].job.state == State.CANCELLED
