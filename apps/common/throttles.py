"""Limits per minute, counted in the cache server; past them the answer is 429 with `Retry-After`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.exceptions import ValidationError as DjangoValidationError
from django.http import HttpRequest
from rest_framework.exceptions import AuthenticationFailed, Throttled, ValidationError
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from apps.common import redis
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

    def __init__(self, name: str, per_minute: int, burst: int | None = None) -> None:
        if per_minute < 1:
            raise ImproperlyConfigured(f"the limit of {name} must be at least 1 a minute, not {per_minute}")
        self.name = name
        self.interval = 60_000_000 // per_minute
        self.capacity = self.interval * (burst or per_minute)

    def take(self, key: str) -> float:
        """Take a token: 0 if there was one, else the seconds until there is."""
        return self._add(key, self.interval)

    def give_back(self, key: str) -> None:
        self._add(key, -self.interval)

    def _add(self, key: str, cost: int) -> float:
        name = f"lyo:throttle:{self.name}:{key}"
        return int(redis.ask_cache(lambda cache: cache.eval(TAKE, 1, name, cost, self.capacity), otherwise=0)) / 1e6


class BucketThrottle(BaseThrottle):
    """One token of `bucket` for each request, per user or, where nobody is logged in, per address."""

    bucket: ClassVar[TokenBucket]

    def allow_request(self, request: Request, view: "APIView") -> bool:
        self.seconds = self.bucket.take(self.key(request))
        return not self.seconds

    def wait(self) -> float:
        return self.seconds

    def key(self, request: Request) -> str:
        return str(request.user.pk) if request.user.is_authenticated else client_address(request)


class RequestThrottle(BucketThrottle):
    bucket = TokenBucket("requests", env.REQUESTS_PER_MINUTE)


class GenerationThrottle(BucketThrottle):
    """In the place of `RequestThrottle` where a request makes the model work."""

    bucket = TokenBucket("generations", env.GENERATIONS_PER_MINUTE)


class RegistrationThrottle(BucketThrottle):
    bucket = TokenBucket("registrations", env.REGISTRATIONS_PER_MINUTE)


class LoginThrottle:
    """Counts failed attempts at a password, per address and user name."""

    bucket = TokenBucket("failed-logins", env.LOGIN_FAILURES_PER_MINUTE)

    @classmethod
    @contextmanager
    def attempt(cls, request: HttpRequest | Request, username: str) -> Iterator[None]:
        """Around the check: a token is taken before it and given back unless it fails.

        So many guesses at once get no further than one after another. Raises `Throttled`.
        """
        key = f"{client_address(request)}:{username.lower()}"
        if wait := cls.bucket.take(key):
            raise Throttled(wait, "Too many failed attempts.")
        try:
            yield
        except (AuthenticationFailed, ValidationError, DjangoValidationError):
            raise
        except BaseException:
            cls.bucket.give_back(key)
            raise
        cls.bucket.give_back(key)


def client_address(request: HttpRequest | Request) -> str:
    """The address that the outermost trusted proxy saw, or the peer's: the rest of the header may be forged."""
    addresses = [part.strip() for part in request.headers.get("X-Forwarded-For", "").split(",") if part.strip()]
    if addresses and settings.TRUSTED_PROXIES:
        return addresses[-min(settings.TRUSTED_PROXIES, len(addresses))]
    return str(request.META.get("REMOTE_ADDR"))
