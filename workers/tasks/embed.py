"""Sentence embeddings for /v1/embeddings, by the packaged MiniLM."""

import base64
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from workers.engine.threads import aside
from workers.models.embedder import Embedder
from workers.tasks.claimed import JobRun, job_task


@cache
def embedder() -> Embedder:
    return Embedder()


loading = Lock()  # two first callers would load it twice


@job_task("workers.embed")
def embed(job: JobRun) -> dict[str, Any]:
    """The result has `vectors`, each little-endian float32 in base64, and the `tokens` that were read.

    A stopped job's has nothing.
    """
    with loading:
        model = embedder()
    embeddings = aside(lambda: model.embed(job.request["input"], stopped=job.stopped.is_set))
    if job.stopped.is_set():
        return {}
    packed = [base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode() for vector in embeddings.vectors]
    return {"vectors": packed, "tokens": sum(embeddings.token_counts)}
