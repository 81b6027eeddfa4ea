"""What the engine of a worker does, for Prometheus and the admin. Only workers with an engine import this: gauges that
others had, too, would be 0 there, and count.

The share of prompts that the cache had is
`rate(lyo_engine_cached_tokens_total[5m]) / rate(lyo_engine_prompt_tokens_total[5m])`.
"""

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict

import structlog
from prometheus_client import Counter, Gauge
from redis.exceptions import RedisError

from apps.common import redis
from apps.inference.selectors import ENGINE_KEY
from workers.protocols import Engine, EngineStats

# By the fields of `EngineStats`.
GAUGES = {
    field: Gauge(f"lyo_engine_{field}", text, multiprocess_mode="livesum")
    for field, text in {
        "running": "Requests in the batch.",
        "waiting": "Requests beside the batch.",
        "batch_limit": "Requests that fit into the batch.",
        "kv_tokens": "Positions of the KV cache, in tokens, that running requests take.",
        "kv_retained_tokens": "Positions of the KV cache, in tokens, that are kept for requests with the same prefix.",
        "kv_capacity_tokens": "Positions of the KV cache, in tokens, that there are.",
    }.items()
}
COUNTERS = {
    field: Counter(f"lyo_engine_{field}", text)
    for field, text in {
        "steps": "Forward passes of the model.",
        "prompt_tokens": "Tokens of the prompts that joined the batch.",
        "cached_tokens": "Of them, tokens that the KV cache had, so that they were not computed.",
        "prefill_seconds": "Seconds in forward passes that read prompts.",
        "decode_seconds": "Seconds in forward passes that only wrote answers.",
        "crashes": "Failed forward passes, each with the loss of its batch.",
    }.items()
}
ADAPTERS = Gauge("lyo_engine_adapters", "Adapters in memory.", multiprocess_mode="livesum")
AVAILABLE = Gauge(
    "lyo_engine_available", "1, or 0 while the model server that is to answer fails.", multiprocess_mode="livemin"
)
SEEN = Gauge("lyo_engine_seen_timestamp_seconds", "When the figures above were read.", multiprocess_mode="livemin")

logger = structlog.get_logger(__name__)

WATCH_S = 1.0
REPORT_S = 5  # a worker that has not reported for so long is not shown
RATE_LOOKS = 5  # the speed that is reported is that between so many looks


class EngineWatch(threading.Thread):
    """Shows what an engine does, once a second for as long as the process lives: to Prometheus and to the admin.

    The admin reads reports (`apps.inference.selectors.engine_list`) from the cache server, where they soon expire.
    """

    def __init__(self, engine: Engine, *, worker: str, about: Callable[[], dict[str, str]]) -> None:
        """about: model, digest, device and dtype, which may become known later."""
        super().__init__(name="engine-watch", daemon=True)
        self._engine = engine
        self._worker = {"worker": worker, "pid": os.getpid(), "started_at": time.time()}
        self._about = about
        self._counted = EngineStats(waiting=0, running=0, tokens_generated=0, batch_limit=0)
        self._looks: deque[tuple[float, int]] = deque(maxlen=RATE_LOOKS + 1)

    def run(self) -> None:
        while True:
            try:
                seen = time.time()
                self.show(self._engine.stats(), time.monotonic())
                SEEN.set(seen)
            except Exception:  # a full disk, say; the next look may succeed
                logger.exception("the engine's figures cannot be shown")
            time.sleep(WATCH_S)

    def show(self, stats: EngineStats, now: float) -> None:
        """Show `stats`, read at `now`: seconds of a clock that only goes forward."""
        for field, counter in COUNTERS.items():
            counter.inc(getattr(stats, field) - getattr(self._counted, field))
        for field, gauge in GAUGES.items():
            gauge.set(getattr(stats, field))
        ADAPTERS.set(len(stats.adapters))
        AVAILABLE.set(not stats.trouble)
        self._counted = stats
        self._looks.append((now, stats.tokens_generated))
        with contextlib.suppress(RedisError):  # the page itself says so
            self._report(stats)

    def _report(self, stats: EngineStats) -> None:
        (start, before), (end, after) = self._looks[0], self._looks[-1]
        speed = (after - before) / (end - start) if end > start else 0.0
        report = {
            **self._worker,
            **self._about(),
            "at": time.time(),
            "tokens_per_second": speed,
            "stats": asdict(stats),
        }
        key = "{}{worker}:{pid}".format(ENGINE_KEY, **self._worker)
        redis.cache().set(key, json.dumps(report), ex=REPORT_S)
