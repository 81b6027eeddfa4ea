"""Limits by time, counted in the cache server; past them the answer is 429 with `Retry-After`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.exceptions import ValidationError as DjangoValidationError
from django.http import HttpRequest
from django.utils.crypto import salted_hmac
from rest_framework.exceptions import AuthenticationFailed, Throttled, ValidationError
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from apps.common import redis
from apps.common.addresses import group_of, parsed
from apps.common.names import folded
from lyo import env

if TYPE_CHECKING:  # importing it here would be circular: its defaults name this module
    from rest_framework.views import APIView

logger = structlog.get_logger(__name__)

# A token bucket in one number: the time, by the server's clock, at which it will be full again (GCRA).
# KEYS bucket. ARGV cost (negative gives back), capacity; both in microseconds of refill. Returns how long to wait.
TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now) + tonumber(ARGV[1])
local wait = full_at - now - tonumber(ARGV[2])
if wait > 0 then return wait end
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.max(1, math.ceil((full_at - now) / 1000)))
return 0
"""


class TokenBucket:
    """Lets `burst` (default: a minute's worth) through at once, and `per_minute` on average, for each key.

    Atomic however many processes ask. Where Redis does not answer, everything passes: a limit is not worth an outage.
    """

    def __init__(self, name: str, per_minute: float, burst: int | None = None) -> None:
        if per_minute <= 0:
            raise ImproperlyConfigured(f"the limit of {name} must be above 0, not {per_minute}")
        self.name = name
        self.interval = int(60_000_000 / per_minute)
        self.capacity = self.interval * (burst or max(int(per_minute), 1))

    def take(self, key: str) -> float:
        """Take a token: 0 if there was one, else the seconds until there is."""
        return self._add(key, self.interval)

    def give_back(self, key: str) -> None:
        self._add(key, -self.interval)

    def place(self, key: str) -> str:
        """Where it is kept: under a name that tells nobody whose it is."""
        return f"lyo:throttle:{self.name}:{_disguised(key)}"

    def _add(self, key: str, cost: int) -> float:
        place = self.place(key)
        return int(redis.ask_cache(lambda cache: cache.eval(TAKE, 1, place, cost, self.capacity), otherwise=0)) / 1e6


def _disguised(key: str) -> str:
    return salted_hmac("apps.common.throttles", key, algorithm="sha256").hexdigest()[:32]


ANONYMOUS = TokenBucket("anonymous", env.ANONYMOUS_PER_MINUTE)


class BucketThrottle(BaseThrottle):
    """One token of `bucket` for each request, per user or, where nobody is logged in, per address."""

    bucket: ClassVar[TokenBucket]

    def allow_request(self, request: Request, view: "APIView") -> bool:
        self.seconds = self.bucket.take(self.key(request))
        return not self.seconds

    def wait(self) -> float:
        return self.seconds

    def key(self, request: Request) -> str:
        return str(request.user.pk) if request.user.is_authenticated else client_network(request)


class RequestThrottle(BucketThrottle):
    """Who is not logged in shares an address with others, and has another limit."""

    bucket = TokenBucket("requests", env.REQUESTS_PER_MINUTE)

    def allow_request(self, request: Request, view: "APIView") -> bool:
        if not request.user.is_authenticated:
            self.bucket = ANONYMOUS  # type: ignore[misc]
        return super().allow_request(request, view)


class GenerationThrottle(BucketThrottle):
    """In the place of `RequestThrottle` where a request makes the model work."""

    bucket = TokenBucket("generations", env.GENERATIONS_PER_MINUTE)


class RegistrationThrottle(BucketThrottle):
    bucket = TokenBucket("registrations", env.REGISTRATIONS_PER_MINUTE)


class ExportThrottle(BucketThrottle):
    bucket = TokenBucket("exports", 6)


class ConfirmationThrottle(BucketThrottle):
    bucket = TokenBucket("confirmations", env.CONFIRMATIONS_PER_HOUR / 60, burst=env.CONFIRMATIONS_PER_HOUR)


class LoginThrottle:
    """Counts failed attempts at a password: all spellings of a name are one account.

    `bucket` is of an address and an account, `of_address` of an address. Many addresses that try one account share
    `of_account`, which fills slowly; each of them gets `share` of it, so that a few cannot use it up. It does not hold
    up those at an address where the owner was let in lately: nobody locks an owner out by guessing from elsewhere.
    """

    bucket = TokenBucket("failed-logins", env.LOGIN_FAILURES_PER_MINUTE)
    of_address = TokenBucket("failed-logins-of-address", env.LOGIN_FAILURES_OF_ADDRESS)
    share = TokenBucket(
        "failed-logins-share", env.LOGIN_FAILURES_OF_ACCOUNT / 600, burst=env.LOGIN_FAILURES_OF_ACCOUNT // 10
    )
    of_account = TokenBucket(
        "failed-logins-of-account", env.LOGIN_FAILURES_OF_ACCOUNT / 60, burst=env.LOGIN_FAILURES_OF_ACCOUNT
    )
    FAMILIAR_S, FAMILIAR = 30 * 86_400, 50  # how long an address stays so, and how many of them an account has

    @classmethod
    @contextmanager
    def attempt(cls, request: HttpRequest | Request, username: str) -> Iterator[None]:
        """Around the check: tokens are taken before it and given back unless it fails.

        So many guesses at once get no further than one after another. Raises `Throttled`.
        """
        account, address = folded(username), client_network(request)
        pair = f"{address} {account}"
        needed = [(cls.bucket, pair), (cls.of_address, address)]
        if not cls._is_familiar(account, address):
            needed += [(cls.share, pair), (cls.of_account, account)]
        taken: list[tuple[TokenBucket, str]] = []
        try:
            for bucket, key in needed:
                if wait := bucket.take(key):
                    raise Throttled(wait, "Too many failed attempts.")
                taken.append((bucket, key))
            yield
        except (AuthenticationFailed, ValidationError, DjangoValidationError):
            raise
        except BaseException:
            cls._give_back(taken)
            raise
        cls._give_back(taken)
        cls.welcome(request, username)

    @classmethod
    def welcome(cls, request: HttpRequest | Request, username: str) -> None:
        """Remember that the owner of an account was let in from where the request came."""

        def remember(cache: Any) -> None:
            key, now = cls._familiar(folded(username)), time.time()
            with cache.pipeline() as pipe:
                pipe.zadd(key, {_disguised(client_network(request)): now}).expire(key, cls.FAMILIAR_S)
                pipe.zremrangebyscore(key, 0, now - cls.FAMILIAR_S).zremrangebyrank(key, 0, -cls.FAMILIAR - 1)
                pipe.execute()

        redis.ask_cache(remember, otherwise=None)

    @classmethod
    def forget(cls, username: str) -> None:
        """Forget from where the owner of an account was let in."""
        redis.ask_cache(lambda cache: cache.delete(cls._familiar(folded(username))), otherwise=None)

    @staticmethod
    def _give_back(taken: list[tuple[TokenBucket, str]]) -> None:
        for bucket, key in taken:
            bucket.give_back(key)

    @staticmethod
    def _familiar(account: str) -> str:
        return f"lyo:logins:{_disguised(account)}"

    @classmethod
    def _is_familiar(cls, account: str, address: str) -> bool:
        return bool(
            redis.ask_cache(lambda cache: cache.zscore(cls._familiar(account), _disguised(address)), otherwise=None)
        )


def client_address(request: HttpRequest | Request) -> str:
    """The address that the outermost trusted proxy saw, or the peer's: the rest of the header may be forged.

    The header counts where as many proxies as there are have added to it, and the last of them connects from where
    proxies do (LYO_PROXY_NETWORKS).
    """
    peer = str(request.META.get("REMOTE_ADDR"))
    proxies: int = settings.TRUSTED_PROXIES
    seen = [part.strip() for part in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",") if part.strip()]
    if not proxies or not seen or not _is_proxy(peer):
        return peer
    address = parsed(seen[-min(proxies, len(seen))])
    return str(address) if address else peer


def client_network(request: HttpRequest | Request) -> str:
    """What one caller can have of addresses."""
    return group_of(client_address(request))


def _is_proxy(peer: str) -> bool:
    address = parsed(peer)
    return address is not None and any(address in network for network in settings.PROXY_NETWORKS)
