import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from pytest_django import Settings
from rest_framework.exceptions import AuthenticationFailed, Throttled
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from apps.common import redis
from apps.common.throttles import BucketThrottle, LoginThrottle, TokenBucket, client_address


@pytest.fixture
def key() -> str:
    return uuid4().hex


@pytest.fixture
def cache_at(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Points the limits at another cache server."""

    def point(address: tuple[str, int]) -> None:
        settings.CACHE_URL = "redis://{}:{}/0".format(*address)
        redis.cache.cache_clear()

    monkeypatch.setattr(redis, "_outage_ends", 0.0)
    yield point
    redis.cache.cache_clear()


def test_the_burst_passes_and_the_next_is_told_how_long_to_wait(key: str) -> None:
    bucket = TokenBucket("test", per_minute=6, burst=3)
    assert [bucket.take(key) for _ in range(3)] == [0, 0, 0]
    assert 9 < bucket.take(key) <= 10
    assert bucket.take(uuid4().hex) == 0  # another's bucket is full


def test_tokens_come_back_at_the_rate_and_no_more_than_the_burst(key: str) -> None:
    bucket = TokenBucket("test", per_minute=120, burst=2)
    assert [bucket.take(key) for _ in range(2)] == [0, 0]
    wait = bucket.take(key)
    assert 0 < wait <= 0.5
    time.sleep(wait)
    assert bucket.take(key) == 0
    assert bucket.take(key) > 0
    time.sleep(1.2)
    assert [bool(bucket.take(key)) for _ in range(3)] == [False, False, True]


def test_a_token_given_back_can_be_taken_again(key: str) -> None:
    bucket = TokenBucket("test", per_minute=1)
    bucket.give_back(key)  # no more than full
    for _ in range(3):
        assert bucket.take(key) == 0
        bucket.give_back(key)
    assert bucket.take(key) == 0
    assert bucket.take(key) > 0


def test_fifty_threads_get_no_more_than_the_limit(key: str) -> None:
    bucket = TokenBucket("test", per_minute=20)
    barrier = threading.Barrier(50)

    def take(_: int) -> float:
        barrier.wait()
        return bucket.take(key)

    with ThreadPoolExecutor(50) as pool:
        waits = list(pool.map(take, range(50)))
    assert waits.count(0) == 20


def test_a_full_bucket_leaves_nothing_behind(key: str) -> None:
    bucket = TokenBucket("test", per_minute=6000)
    bucket.take(key)
    time.sleep(0.05)
    assert not redis.cache().exists(bucket.place(key))


def test_everything_passes_at_once_where_the_cache_is_down(cache_at: Any, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    cache_at(address)
    bucket = TokenBucket("test", per_minute=1)
    start = time.monotonic()
    assert [bucket.take(key) for _ in range(100)] == [0] * 100
    assert time.monotonic() - start < 0.5


def test_a_frozen_cache_costs_one_timeout_and_not_one_for_each_request(cache_at: Any, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections and never answers
        cache_at(server.getsockname())
        bucket = TokenBucket("test", per_minute=1)
        start = time.monotonic()
        assert [bucket.take(key) for _ in range(100)] == [0] * 100
        assert time.monotonic() - start < 2.5


def test_a_limited_view_answers_429_with_retry_after(key: str) -> None:
    class Limit(BucketThrottle):
        bucket = TokenBucket("test", per_minute=2)

    class View(APIView):
        authentication_classes = ()
        permission_classes = ()
        throttle_classes = (Limit,)
        http_method_names = ("get",)

        def get(self, request: Any) -> Any:
            return SimpleNamespace(status_code=200)

    request = APIRequestFactory().get("/", REMOTE_ADDR=key)
    answers = []
    for _ in range(3):
        view = View()
        view.finalize_response = lambda request, response, *args, **kwargs: response  # type: ignore[method-assign]
        view.setup(request)
        answers.append(view.dispatch(request))
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2]["Retry-After"] == "30"
    assert answers[2].data["errors"][0]["code"] == "throttled"


def test_only_failed_attempts_count(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(LoginThrottle, "bucket", TokenBucket("test", per_minute=2))
    request = APIRequestFactory().post("/", REMOTE_ADDR=key)

    def attempt(error: Exception | None = None) -> None:
        with LoginThrottle.attempt(request, "ann"):
            if error:
                raise error

    for _ in range(5):
        attempt()
        with pytest.raises(ConnectionError):  # our own fault is not the caller's
            attempt(ConnectionError())
    for _ in range(2):
        with pytest.raises(AuthenticationFailed):
            attempt(AuthenticationFailed())
    with pytest.raises(Throttled):
        attempt()
    with LoginThrottle.attempt(request, "bob"):
        pass


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "6.6.6.6", "10.0.0.1"),
        (1, None, "10.0.0.1"),
        (1, "6.6.6.6, 1.2.3.4", "1.2.3.4"),
        (2, "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        (2, "1.2.3.4", "1.2.3.4"),
    ],
)
def test_the_address_is_the_one_that_trusted_proxies_saw(
    settings: Settings, proxies: int, forwarded: str | None, address: str
) -> None:
    settings.TRUSTED_PROXIES = proxies
    headers = {"HTTP_X_FORWARDED_FOR": forwarded} if forwarded else {}
    assert client_address(APIRequestFactory().get("/", REMOTE_ADDR="10.0.0.1", **headers)) == address
