"""Enrichment: what waits is read by the embedder and its heads, batch by batch, until nothing waits."""

from contextlib import suppress
from hashlib import sha256
from typing import Any

import numpy as np
from celery.signals import worker_ready
from django.db import DatabaseError, connection
from django.utils import timezone

from apps.content.models import Enrichment
from apps.content.selectors import item_pending, item_source, topic_list
from apps.content.services import enrichment_record, enrichment_request
from apps.jobs.services import job_progress
from workers.engine.threads import aside
from workers.models.embedder import EMBEDDER
from workers.scoring.heads import Heads
from workers.scoring.topics import Topics
from workers.tasks.claimed import JobRun, job_task
from workers.tasks.embed import embedder, loading

BATCH = 64  # items


@job_task("workers.enrich")
def enrich(job: JobRun) -> dict[str, Any]:
    """The result has the number of `items`. A killed worker's round is gone on with: what is kept waits no more."""
    with loading:
        model = embedder()
    heads = Heads.load()
    digest = sha256(f"{EMBEDDER} {heads.digest}".encode()).hexdigest()

    def embed(texts: list[str]) -> np.ndarray:
        return np.array(aside(lambda: model.embed(texts, fast=True)).vectors, np.float32)

    topics = Topics.of([(topic.slug, topic.subject, topic.name) for topic in topic_list()], embed)
    done = 0
    while not job.stopped.is_set():
        items = list(item_pending(models_digest=digest).defer("body")[:BATCH])
        connection.close()
        if not items:
            break
        texts = [item_source(item) for item in items]
        vectors = embed(texts)
        judged = zip(items, vectors, heads.judge(texts, vectors), strict=True)
        enrichment_record(
            Enrichment(
                item=item,
                source=item.source,
                model=EMBEDDER,
                models_digest=digest,
                embedding=vector,
                educational=judgement.educational,
                quality=judgement.quality,
                level=judgement.level,
                topics=topics.alike(vector, item.subject),
                enriched_at=timezone.now(),
            )
            for item, vector, judgement in judged
        )
        job_progress(claim=job.claim)
        done += len(items)
    return {"items": done}


@worker_ready.connect
def look_again(**_: Any) -> None:
    """Other models than before may have come with this process."""
    with suppress(DatabaseError):  # then what is new or changed brings it on
        enrichment_request()
    connection.close()
