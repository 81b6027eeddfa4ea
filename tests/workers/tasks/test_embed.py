"""The `embed` task with the packaged embedder."""

import base64
from typing import Any

import numpy as np
import pytest

from apps.jobs.models import Job, State
from apps.jobs.services import job_create
from workers.models.embedder import DIMENSIONS, TEXTS_AT_A_TIME, Embedder
from workers.tasks import claimed, embed

pytestmark = pytest.mark.django_db(transaction=True)


def execute(texts: list[str]) -> Job:
    job = job_create(kind="embed", request={"input": texts}, keep=False)
    embed.embed(str(job.id))
    job.refresh_from_db()
    return job


def test_texts_become_vectors() -> None:
    job = execute(["a cat", "a kitten on a rug"])
    assert (job.state, job.result["tokens"]) == (State.SUCCEEDED, 7)
    vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in job.result["vectors"]]
    assert [len(vector) for vector in vectors] == [DIMENSIONS] * 2


def test_a_stopped_job_reads_no_more_of_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[claimed.JobRun] = []
    parts: list[int] = []
    embedder = Embedder()
    forward = embedder._forward

    class SeenRun(claimed.JobRun):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            runs.append(self)

    def forward_and_stop(part: list[list[int]]) -> Any:
        parts.append(len(part))
        runs[0].stop("cancelled")
        return forward(part)

    monkeypatch.setattr(claimed, "JobRun", SeenRun)
    monkeypatch.setattr(embed, "embedder", lambda: embedder)
    monkeypatch.setattr(embedder, "_forward", forward_and_stop)
    job = execute(["a cat"] * 3 * TEXTS_AT_A_TIME)
    assert (job.state, job.result, parts) == (State.CANCELLED, {}, [TEXTS_AT_A_TIME])
