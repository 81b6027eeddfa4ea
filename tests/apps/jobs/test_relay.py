"""Many readers, few connections: the relay of a process, and the places that users have for open streams."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.db import connection

from apps.common import places, redis, stopping
from apps.jobs import relay as relays
from apps.jobs import services, streams
from apps.jobs.models import Job, State
from apps.jobs.streams import Ended, Entry, Interrupted
from apps.users.models import User
from apps.users.services import token_create
from lyo import env
from tests.apps.conftest import PlayedWorker, Run, serving, url_of
from tests.helpers import until

pytestmark = pytest.mark.django_db(transaction=True)

READERS = 100
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture(autouse=True)
def no_places() -> Iterator[None]:
    redis.cache().delete(*redis.cache().keys("lyo:places:*") or ["x"])
    yield


@pytest.fixture
def http(live: str, token: str) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=live, headers={"Authorization": f"Bearer {token}"}, timeout=20, limits=limits) as client:
        yield client


def running(user: User | None = None) -> Run:
    job = services.job_create(kind="embed", user=user, request={}, keep=True)
    claim = services.job_claim(job_id=job.id, worker="w")
    assert claim is not None
    return Run(claim)


def succeed(run: Run, text: str) -> None:
    """On another thread than the test's, which leaves no connection there."""
    run.succeed(text=text)
    connection.close()


def clients(server: Any) -> int:
    return int(server.info("clients")["connected_clients"])


async def text_of(job: Job, after: int = 0) -> tuple[str, list[Any]]:
    events = [event async for event in streams.follow(job, after)]
    return "".join(event.text for event in events if isinstance(event, Entry)), events


# --- one reader ---


def test_many_readers_of_many_streams_share_one_connection_and_all_get_all(learner: User) -> None:
    runs = [running() for _ in range(5)]

    async def read() -> list[tuple[str, list[Any]]]:
        before = clients(redis.broker())
        reading = [asyncio.create_task(text_of(run.claim.job)) for run in runs for _ in range(READERS)]
        await asyncio.sleep(0.5)
        for run in runs:
            await asyncio.to_thread(run.write, "Hel")
        await asyncio.sleep(0.2)
        assert clients(redis.broker()) - before <= 3
        for run in runs:
            await asyncio.to_thread(run.write, "lo!")
            await asyncio.to_thread(succeed, run, "Hello!")
        return await asyncio.wait_for(asyncio.gather(*reading), 20)

    for text, events in async_to_sync(read)():
        assert text == "Hello!"
        assert [type(event) for event in events].count(Ended) == 1
        assert events[-1].job.state == State.SUCCEEDED


def test_a_new_stream_is_heard_at_once_while_the_reader_waits_for_another() -> None:
    first, second = running(), running()

    async def read() -> float:
        waiting = asyncio.create_task(text_of(first.claim.job))
        await asyncio.sleep(0.3)  # the reader is blocked now
        start = time.monotonic()
        await asyncio.to_thread(second.write, "x")
        async for _ in streams.follow(second.claim.job):
            break
        waiting.cancel()
        return time.monotonic() - start

    assert async_to_sync(read)() < relays.BLOCK_MS / 1000 / 2


def test_a_late_reader_gets_what_was_read_before_it_came() -> None:
    run = running()

    async def read() -> tuple[str, str]:
        early = asyncio.create_task(text_of(run.claim.job))
        await asyncio.to_thread(run.write, "Hello")
        until_read = asyncio.create_task(asyncio.sleep(0.3))
        await until_read
        late = asyncio.create_task(text_of(run.claim.job, after=2))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(succeed, run, "Hello")
        return (await early)[0], (await late)[0]

    assert async_to_sync(read)() == ("Hello", "llo")


def test_a_reader_before_the_first_offset_of_another_gets_all() -> None:
    run = running()
    run.write("Hel")
    run.write("lo!")

    async def read() -> tuple[str, str]:
        resumed = asyncio.create_task(text_of(run.claim.job, after=5))
        await asyncio.sleep(0.2)
        whole = asyncio.create_task(text_of(run.claim.job))
        await asyncio.to_thread(succeed, run, "Hello!")
        return (await resumed)[0], (await whole)[0]

    assert async_to_sync(read)() == ("!", "Hello!")


def test_one_streams_fault_is_not_anothers() -> None:
    broken, whole = running(), running()
    redis.broker().xadd(f"lyo:stream:{broken.claim.job.id}", {"d": "no JSON"}, id="3-0")

    async def read() -> tuple[Any, str]:
        results = asyncio.gather(text_of(broken.claim.job), text_of(whole.claim.job), return_exceptions=True)
        await asyncio.to_thread(whole.write, "fine")
        await asyncio.to_thread(succeed, whole, "fine")
        failed, (text, _) = await asyncio.wait_for(results, 10)
        return failed, text

    failed, text = async_to_sync(read)()
    assert isinstance(failed, ValueError)
    assert text == "fine"


def test_readers_survive_the_loss_of_their_connection() -> None:
    run = running()

    async def read() -> tuple[str, list[Any]]:
        reading = asyncio.create_task(text_of(run.claim.job))
        for word in ("Hel", "lo", "!"):
            await asyncio.to_thread(run.write, word)
            await asyncio.sleep(0.1)
            redis.broker().client_kill_filter(_type="normal", skipme=True)
        await asyncio.to_thread(succeed, run, "Hello!")
        return await asyncio.wait_for(reading, 20)

    text, events = async_to_sync(read)()
    assert text == "Hello!"
    assert isinstance(events[-1], Ended)


def test_nothing_is_read_or_marked_when_nobody_listens_any_more() -> None:
    run = running()

    async def read() -> set[str]:
        async for _ in streams.follow(run.claim.job):
            raise AssertionError("nothing was written")
        return set()

    async def give_up() -> tuple[int, list[bool]]:
        task = asyncio.create_task(read())
        await asyncio.sleep(0.2)
        process = relays.relay()
        assert list(process.channels) == [run.claim.job.id]
        task.cancel()
        await asyncio.wait([task])
        left = len(process.channels)
        await asyncio.sleep(relays.ROW_CHECK_S + 0.5)
        return left, [running.done() for running in process._tasks.values()]

    left, done = async_to_sync(give_up)()
    assert left == 0
    assert done and all(done)


# --- a process that is told to stop ---


def test_who_follows_is_told_that_the_process_stops_and_the_job_goes_on() -> None:
    run = running()
    run.write("Hel")

    async def read() -> list[Any]:
        reading = asyncio.create_task(text_of(run.claim.job))
        await asyncio.sleep(0.3)
        stopping.begin()
        _, events = await asyncio.wait_for(reading, 2)
        return [*events, *[event async for event in streams.follow(run.claim.job)]]

    kinds = [type(event) for event in async_to_sync(read)()]
    assert kinds == [Entry, Interrupted, Interrupted]
    assert Job.objects.get(id=run.claim.job.id).state == State.RUNNING


def lines_until_stopped(token: str, method: str, path: str, **request: Any) -> tuple[int, list[str]]:
    """What a client is sent of a stream while its server is asked to stop, once something has come."""
    with serving() as server:
        headers = {"Authorization": f"Bearer {token}", **EVENTS}
        url = f"{url_of(server)}{path}"
        with httpx.stream(method, url, headers=headers, timeout=20, **request) as response:
            lines = []
            for line in response.iter_lines():
                lines.append(line)
                if '"Hel"' in line:
                    server.should_exit = True
            return response.status_code, [line for line in lines if line]


def test_a_v1_stream_of_a_stopped_process_ends_with_an_error_that_says_so(token: str, worker: PlayedWorker) -> None:
    stopped = threading.Event()

    def play(run: Run) -> None:
        run.write("Hel")
        stopped.wait(20)
        run.answer(["lo"])

    worker.play = play
    ask = {"model": env.MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    start = time.monotonic()
    status, lines = lines_until_stopped(token, "POST", "/v1/chat/completions", json=ask)
    assert time.monotonic() - start < 4
    stopped.set()
    assert status == 200
    assert json.loads(lines[-1].removeprefix("data: ")) == {
        "error": {
            "message": "The server is being restarted: ask again.",
            "type": "server_error",
            "param": None,
            "code": "restarting",
        }
    }


def test_a_stream_of_a_stopped_process_closes_and_is_resumed_by_its_last_id(
    live: str, learner: User, token: str
) -> None:
    run = running(learner)
    run.write("Hel")
    path = f"/api/v1/jobs/{run.claim.job.id}/events"
    status, lines = lines_until_stopped(token, "GET", path)
    assert (status, lines) == (200, ["retry: 1000", "id: 3", "event: token", 'data: {"text": "Hel"}'])
    run.write("lo!")
    run.succeed(text="Hello!")
    headers = {"Authorization": f"Bearer {token}", "Last-Event-ID": "3", **EVENTS}
    rest = httpx.get(f"{live}{path}", headers=headers, timeout=20).text
    assert 'data: {"text": "lo!"}' in rest
    assert rest.count("event: done") == 1
    assert "Hel" not in rest


@pytest.mark.parametrize("path", ["chat/completions", "embeddings"])
def test_who_waits_for_a_whole_answer_of_a_stopped_process_is_told_to_ask_again(
    token: str, worker: PlayedWorker, path: str
) -> None:
    asked, stopped = threading.Event(), threading.Event()

    def play(run: Run) -> None:
        asked.set()
        stopped.wait(20)
        run.fail("x", "x")

    worker.play = play
    body = {"model": env.MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    if path == "embeddings":
        body = {"model": "embedding", "input": "Hi"}
    with serving() as server, ThreadPoolExecutor(1) as pool:
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{url_of(server)}/v1/{path}"
        asking = pool.submit(httpx.post, url, json=body, headers=headers, timeout=20)
        assert asked.wait(10)
        time.sleep(0.2)  # its reader listens
        server.should_exit = True
        answer = asking.result(10)
    stopped.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "restarting")
    assert answer.headers["Retry-After"] == "2"


# --- places ---


def opened(http: httpx.Client, stack: ExitStack, path: str, **request: Any) -> int:
    """Open a stream and leave it open; its status."""
    method = "POST" if "json" in request else "GET"
    return stack.enter_context(http.stream(method, path, headers=EVENTS, **request)).status_code


def test_streams_past_the_limit_are_429_and_free_again_when_the_client_hangs_up(
    http: httpx.Client, learner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "STREAMS_PER_USER", 3)
    run = running(learner)
    events = f"/api/v1/jobs/{run.claim.job.id}/events"
    with ExitStack() as stack:
        assert [opened(http, stack, events) for _ in range(3)] == [200, 200, 200]
        refusal = http.get(events)
        assert (refusal.status_code, refusal.json()["errors"][0]["code"]) == (429, "too_many_streams")
        assert refusal.headers["Retry-After"] == "5"
    with ExitStack() as stack:
        until(lambda: opened(http, stack, events) == 200)
    run.succeed(text="")
    assert http.get(events).status_code == 200


def test_a_refused_stream_leaves_nothing_behind(
    http: httpx.Client, learner: User, worker: PlayedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "STREAMS_PER_USER", 1)
    talk = http.post("/api/v1/tutor/conversations", json={"subject": "math", "level": "beginner"}).json()["id"]
    ask = {"model": env.MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    run = running(learner)
    with ExitStack() as stack:
        assert opened(http, stack, f"/api/v1/jobs/{run.claim.job.id}/events") == 200
        messages = f"/api/v1/tutor/conversations/{talk}/messages"
        for path, body in [
            (messages, {"content": "Hi"}),
            ("/v1/chat/completions", {**ask, "stream": True}),
            ("/v1/chat/completions", ask),
            ("/v1/embeddings", {"model": "embedding", "input": "Hi"}),
        ]:
            refusal = http.post(path, json=body, headers=EVENTS)
            assert (refusal.status_code, refusal.headers["Retry-After"]) == (429, "5"), path
        assert http.get(messages).json()["results"] == []
        assert Job.objects.count() == 1
        assert http.post(messages, json={"content": "Hi"}).status_code == 202  # whoever does not wait needs no place
    run.succeed(text="")


def test_a_refused_request_gives_its_place_back(http: httpx.Client, learner: User) -> None:
    bad = {"model": "nothing", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    for _ in range(3):
        assert http.post("/v1/chat/completions", json=bad).status_code == 404
        assert http.get("/api/v1/jobs/1/events").status_code == 404
    assert redis.cache().zcard(f"lyo:places:{learner.pk}") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_gives_its_place_back(http: httpx.Client, learner: User, worker: PlayedWorker, stream: bool) -> None:
    worker.play = lambda run: run.answer(["Hi"])
    ask = {"model": env.MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    for _ in range(3):
        assert http.post("/v1/chat/completions", json=ask).status_code == 200
    until(lambda: redis.cache().zcard(f"lyo:places:{learner.pk}") == 0)


def test_another_user_has_places_of_her_own(http: httpx.Client, learner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "STREAMS_PER_USER", 1)
    other = User.objects.create_user("grace", "grace@example.org")
    theirs, hers = running(learner), running(other)
    bearer = {"Authorization": f"Bearer {token_create(user=other)[1]}", **EVENTS}
    with ExitStack() as stack:
        assert opened(http, stack, f"/api/v1/jobs/{theirs.claim.job.id}/events") == 200
        stream = stack.enter_context(http.stream("GET", f"/api/v1/jobs/{hers.claim.job.id}/events", headers=bearer))
        assert stream.status_code == 200
    theirs.succeed(text="")
    hers.succeed(text="")


def test_the_places_of_a_killed_process_are_free_after_their_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places.Place, "LIFE_MS", 300)
    with pytest.raises(places.TooManyRequests), places.Place.taken("u", 1), places.Place.taken("u", 1):
        pass
    with places.Place.taken("u", 1):
        pass  # nobody holds it: as if the process were gone
    until(lambda: not redis.cache().exists("lyo:places:u"), seconds=2)
    with places.Place.taken("u", 1):
        pass


def test_a_place_that_is_held_outlives_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places.Place, "LIFE_MS", 400)
    monkeypatch.setattr(relays, "PLACES_S", 0.1)

    async def hold(place: places.Place) -> int:
        with streams.holding(place):
            await asyncio.sleep(1)
            return int(redis.cache().zcard(place.key))

    with places.Place.taken("v", 1) as place:
        assert async_to_sync(hold)(place) == 1
    until(lambda: not redis.cache().zcard(place.key), seconds=2)


def test_places_are_never_given_twice() -> None:
    def enter(_: int) -> bool:
        try:
            with places.Place.taken("w", 5):
                return True
        except places.TooManyRequests:
            return False

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(enter, range(40))) == 5
    redis.cache().delete("lyo:places:w")
