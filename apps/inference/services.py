from datetime import timedelta
from hashlib import sha256
from secrets import randbelow
from typing import Any

from django.db import transaction

from apps.common.errors import TooManyRequests
from apps.common.throttles import GenerationThrottle
from apps.inference.models import Adapter
from apps.inference.selectors import ServedModel
from apps.jobs.dispatch import ROUTES
from apps.jobs.models import Job
from apps.jobs.services import job_admit, job_create, job_find_repeat
from apps.users.models import User
from lyo import env

SEEDS = 2**63


def adapter_add(
    *,
    suffix: str,
    digest: str,
    base_model: str,
    base_digest: str,
    dataset_version: str = "",
    recipe: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    task: str = "",
    subject: str = "",
    licence: str = "",
    size: int = 0,
) -> Adapter:
    """Enter an adapter whose folder is kept under its digest; the same weights are the adapter that is there."""
    fields = {
        "name": f"ft:{base_model}:{suffix}@{digest}",
        "base_model": base_model,
        "base_digest": base_digest,
        "dataset_version": dataset_version,
        "recipe": recipe or {},
        "metrics": metrics or {},
        "task": task,
        "subject": subject,
        "licence": licence,
        "size": size,
    }
    return Adapter.objects.get_or_create(digest=digest, defaults=fields)[0]


@transaction.atomic
def chat_create(
    *,
    user: User,
    model: ServedModel,
    messages: list[dict[str, str]],
    sampling: dict[str, Any],
    n: int,
    idempotency_key: str | None = None,
) -> list[Job]:
    """Queue one job for each of `n` choices, with seeds that count up from the given or a random one.

    A repeat with the same key gets the jobs of the first request. Raises `TooManyRequests` and `Conflict`.
    """
    seed = randbelow(SEEDS) if sampling["seed"] is None else sampling["seed"]
    requests: list[dict[str, Any]] = [
        {"messages": messages, "overflow": "refuse", "sampling": {**sampling, "seed": (seed + i) % SEEDS}}
        for i in range(n)
    ]
    asked = {"model": model.id, "messages": messages, "sampling": sampling, "n": n}
    return _create(user=user, kind=model.kind, requests=requests, idempotency_key=idempotency_key, asked=asked)


@transaction.atomic
def embedding_create(*, user: User, model: ServedModel, texts: list[str], idempotency_key: str | None = None) -> Job:
    """Queue the embedding of `texts`. Raises as `chat_create` does."""
    request = {"input": texts}
    asked = {"model": model.id, **request}
    return _create(user=user, kind=model.kind, requests=[request], idempotency_key=idempotency_key, asked=asked)[0]


def _create(
    *, user: User, kind: str, requests: list[dict[str, Any]], idempotency_key: str | None, asked: dict[str, Any]
) -> list[Job]:
    # A key belongs to one row, so each choice has its own; hashed, it fits whatever its length.
    digest = sha256(idempotency_key.encode()).hexdigest() if idempotency_key else None
    keys = [f"{digest}#{i}" if digest else None for i in range(len(requests))]
    made = [job_find_repeat(user=user, idempotency_key=key, request=asked) for key in keys]
    if repeated := [job for job in made if job]:
        return repeated
    for _ in requests[1:]:  # the view took the first
        if wait := GenerationThrottle.bucket.take(str(user.pk)):
            raise TooManyRequests("Too many generations a minute.", code="rate_limit_exceeded", wait=wait)
    job_admit(user=user, queue=ROUTES[kind].queue, count=len(requests))
    return [
        job_create(
            kind=kind,
            user=user,
            request=request,
            keep=key is not None,  # who names a request means to come back for it
            deadline=timedelta(seconds=env.JOB_DEADLINE_S),
            idempotency_key=key,
            fingerprint_of=asked,
        )
        for key, request in zip(keys, requests, strict=True)
    ]
