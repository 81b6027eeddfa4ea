"""What a query means: its embedding, and what it asks for. A search waits for it, so it is kept short."""

import base64
import time
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from apps.content.selectors import topic_list
from workers.engine.threads import aside
from workers.scoring.intents import IntentClassifier
from workers.scoring.queries import understood
from workers.scoring.topics import Topics
from workers.tasks.claimed import JobRun, job_task
from workers.tasks.embed import embedder, loading

TOPICS_S = 300.0  # how old the topics may be

_topics: tuple[float, Topics] | None = None
_reading = Lock()


@job_task("workers.understand")
def understand(job: JobRun) -> dict[str, Any]:
    """The result has the `vector`, little-endian float32 in base64, `intent`, `subject` and `level`."""
    text = job.request["text"]
    vector = embed([text])[0]
    found = understood(text, vector, topics(), intents())
    return {
        "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode(),
        "intent": found.intent,
        "subject": found.subject,
        "level": found.level,
    }


def embed(texts: list[str]) -> np.ndarray:
    with loading:
        model = embedder()
    return np.array(aside(lambda: model.embed(texts)).vectors, np.float32)


@cache
def intents() -> IntentClassifier:
    return IntentClassifier.load()


def topics() -> Topics:
    global _topics
    with _reading:
        if _topics is None or time.monotonic() - _topics[0] > TOPICS_S:
            rows = [(topic.slug, topic.subject, topic.name) for topic in topic_list().prefetch_related(None)]
            _topics = time.monotonic(), Topics.of(rows, embed)
        return _topics[1]
