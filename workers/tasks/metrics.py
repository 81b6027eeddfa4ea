"""What a worker measures, for Prometheus: on the web's /metrics where both share a machine, else on its own port.

Tokens per second are `rate(lyo_tokens_total[1m])`.
"""

import time
from datetime import datetime
from typing import Any

from celery.signals import worker_init
from prometheus_client import Counter, Histogram, start_http_server

from lyo import env

FIRST_TOKEN = Histogram(
    "lyo_first_token_seconds",
    "From a job's acceptance to its first token.",
    buckets=(0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60, 120),
)
INTER_TOKEN = Histogram(
    "lyo_inter_token_seconds",
    "Between the deliveries of one answer.",
    buckets=(0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 5),
)
TOKENS = Counter("lyo_tokens", "Generated tokens.")
JOBS = Counter("lyo_jobs_finished", "Ended jobs.", ["kind", "state"])


class TokenClock:
    """Times the tokens of one answer. A resumed answer has had its first token already."""

    def __init__(self, accepted: datetime, resumed: bool) -> None:
        self._accepted = accepted.timestamp()
        self._last: float | None = time.monotonic() if resumed else None

    def tick(self, tokens: int) -> None:
        now = time.monotonic()
        TOKENS.inc(tokens)
        if self._last is None:
            FIRST_TOKEN.observe(time.time() - self._accepted)
        else:
            INTER_TOKEN.observe(now - self._last)
        self._last = now


@worker_init.connect
def serve(**_: Any) -> None:
    if env.METRICS_PORT:
        start_http_server(env.METRICS_PORT)
