"""What a query means: its embedding, and what it asks for. A search waits for it, so it is kept short.

Gemma says what it asks for once an adapter is live for that, and in time; else a small head does.
"""

import base64
import time
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import structlog
from django.db import connection

from apps.common.constants import Task
from apps.content.selectors import topic_list
from apps.inference.selectors import adapter_live
from apps.training.formats import ANY, QUERY_CHOICES, QUERY_JOINT, query_question
from workers.engine.threads import aside
from workers.models.template import render
from workers.protocols import EngineCrashed, Refused
from workers.scoring.choices import choices_made
from workers.scoring.intents import IntentClassifier
from workers.scoring.queries import Understood, understood
from workers.scoring.topics import Topics
from workers.tasks.claimed import JobRun, job_task
from workers.tasks.embed import embedder, loading
from workers.tasks.runtime import have_adapter, runtime

logger = structlog.get_logger(__name__)

TOPICS_S = 300.0  # how old the topics may be
PATIENCE_S = 0.25  # with Gemma, of the time for which a search waits

_topics: tuple[float, Topics] | None = None
_reading = Lock()


@job_task("workers.understand")
def understand(job: JobRun) -> dict[str, Any]:
    """The result has the `vector`, little-endian float32 in base64, `intent`, `subject`, `level`, and `adapter`: whose
    these are, or None."""
    text = job.request["text"]
    live = adapter_live(task=Task.QUERY)
    connection.close()
    vector = embed([text])[0]
    found = (live and asked(text, live.name)) or understood(text, vector, topics(), intents())
    return {
        "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode(),
        "intent": found.intent,
        "subject": found.subject,
        "level": found.level,
        "adapter": found.adapter,
    }


def asked(text: str, adapter: str) -> Understood | None:
    """What Gemma says of the query; None where it does not in time."""
    try:
        have_adapter(adapter)
        model, engine = runtime()[:2]
        prompt = render(model.tokenizer, [{"role": "user", "content": query_question(text)}])
        made = choices_made(
            engine, model.tokenizer, prompt, QUERY_CHOICES, joint=QUERY_JOINT, adapter=adapter, seconds=PATIENCE_S
        )
    except (TimeoutError, Refused, EngineCrashed) as error:
        logger.warning("the small head reads a query: Gemma did not", adapter=adapter, error=error)
        return None
    intent, subject, level = ("" if choice == ANY else choice for choice in made)
    return Understood(intent, subject, level, adapter)


def embed(texts: list[str]) -> np.ndarray:
    with loading:
        model = embedder()
    return np.array(aside(lambda: model.embed(texts, urgent=True)).vectors, np.float32)


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
