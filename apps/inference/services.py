from collections.abc import Iterable
from datetime import timedelta
from hashlib import sha256
from secrets import randbelow
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import Min
from django.utils import timezone
from django.utils.crypto import salted_hmac
from rest_framework.exceptions import NotFound

from apps.common.errors import Conflict, TooManyRequests
from apps.common.retention import delete_in_batches
from apps.common.throttles import GenerationThrottle
from apps.common.tokens import require_room
from apps.inference import store
from apps.inference.metrics import ANSWERS, BASE, THUMBS
from apps.inference.models import Adapter, Outcome, Route, RouteChange, SettledModel
from apps.inference.selectors import (
    SETTLED,
    Believed,
    ServedModel,
    adapter_live,
    canary_test,
    route_state,
    routed,
)
from apps.jobs.models import ACTIVE, Job, State
from apps.jobs.services import job_admit, job_create, job_find_repeat
from apps.users.models import User
from lyo import env

logger = structlog.get_logger(__name__)

SEEDS = 2**63
UPLOAD_AGE = timedelta(days=1)
Action = RouteChange.Action


# --- adapters ---


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
    """Enter an adapter whose folder is kept under its digest; the same weights are the adapter that is there, of which
    what is said last of task, subject and licence holds.

    Weights that were marked because their data were erased, and have been learnt again without those, lose the mark.
    """
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
    adapter, made = Adapter.objects.get_or_create(digest=digest, defaults=fields)
    said = {name: value for name, value in (("task", task), ("subject", subject), ("licence", licence)) if value}
    if not made and any(getattr(adapter, name) != value for name, value in said.items()):
        for name, value in said.items():
            setattr(adapter, name, value)
        adapter.save(update_fields=[*said, "updated_at"])
    if not made and adapter.erased_at and dataset_version != adapter.dataset_version:
        adapter.dataset_version, adapter.erased_at = dataset_version, None
        adapter.save(update_fields=["dataset_version", "erased_at", "updated_at"])
    return adapter


# --- routes: every change of one, with its audit row, in one transaction ---


@transaction.atomic
def route_promote(
    *,
    task: str,
    subject: str = "",
    adapter: Adapter,
    canary_share: float | None = None,
    user: User | None = None,
    reason: str = "",
    evaluation_id: UUID | None = None,
    overridden: Iterable[str] = (),
    believed: Believed | None = None,
) -> Route:
    """Make an adapter live, or with a share the canary; the share of a running canary can be changed so too.

    Raises `Conflict` for an adapter that is erased or of another model, for one that is live, while another one is the
    canary, and as `_locked` does. Whether it is good enough, its caller has found out.
    """
    if not adapter.is_servable:
        problem = "Its data were erased." if adapter.erased_at else f"It was made for {adapter.base_model}."
        raise Conflict(f"{problem} It cannot be served.", code="not_servable")
    Route.objects.get_or_create(task=task, subject=subject)
    route = _locked(task, subject, believed)
    before = route_state(route)
    if route.canary_id not in (None, adapter.id):
        raise Conflict(f"{route.canary} is the canary: complete it, or roll it back.", code="canary_running")
    if route.live_id == adapter.id:
        raise Conflict("It is live.", code="already_live")
    if canary_share is None:
        _set(route, live=adapter)
    else:
        started_at = route.canary_started_at or timezone.now()
        _set(route, live=route.live, canary=adapter, canary_share=canary_share, canary_started_at=started_at)
    action = Action.PROMOTE if canary_share is None else Action.CANARY
    why = {"user": user, "reason": reason, "evaluation_id": evaluation_id, "overridden": list(overridden)}
    return _recorded(route, action, before, **why)


@transaction.atomic
def route_complete(
    *, task: str, subject: str = "", user: User | None = None, reason: str = "", believed: Believed | None = None
) -> Route:
    """Make the canary live. Raises `Conflict` without a canary that can be served, and as `_locked` does."""
    route = _locked(task, subject, believed)
    if route.canary is None:
        raise Conflict("There is no canary.", code="no_canary")
    if not route.canary.is_servable:
        raise Conflict("The canary cannot be served any more: roll it back.", code="not_servable")
    before, test = route_state(route), canary_test(route)
    _set(route, live=route.canary)
    return _recorded(route, Action.COMPLETE, before, user=user, reason=reason, test=test)


@transaction.atomic
def route_rollback(
    *, task: str, subject: str = "", user: User | None = None, reason: str = "", believed: Believed | None = None
) -> Route:
    """End the canary, or without one go back to what was live before and can still be served.

    A subject's route goes back to its task's where that has a live one; none goes back to the base model. Raises
    `Conflict` where nothing was live before, and as `_locked` does.
    """
    route = _locked(task, subject, believed)
    before, test = route_state(route), canary_test(route)
    if route.canary:
        _set(route, live=route.live)
    elif route.live:
        _set(route, live=_live_before(route))
    else:
        raise _nothing_before("No adapter is live, and none is the canary.")
    return _recorded(route, Action.ROLLBACK, before, user=user, reason=reason, test=test)


def canaries_watch() -> list[Route]:
    """Roll back the canaries that the sequential test has found worse; returns their routes."""
    watched = Route.objects.filter(canary__isnull=False).values_list("task", "subject")
    return [route for task, subject in watched if (route := _canary_watch(task, subject))]


@transaction.atomic
def _canary_watch(task: str, subject: str) -> Route | None:
    route = _locked(task, subject)
    test = canary_test(route)
    worse = [name for name, measure in test["measures"].items() if measure["worse"]] if test else []
    if not worse:
        return None
    before = route_state(route)
    _set(route, live=route.live)
    logger.warning("a canary was rolled back", route=str(route), canary=before["canary"], worse=worse)
    reason = f"Worse than live beyond the margin: {', '.join(worse)}."
    return _recorded(route, Action.AUTOMATIC_ROLLBACK, before, reason=reason, test=test)


def _locked(task: str, subject: str, believed: Believed | None = None) -> Route:
    """The route, whose other writers wait until the transaction ends.

    Raises `NotFound` for an unknown one, and `Conflict` (`route_changed`) where it is not as the caller believes.
    """
    # Without its adapters: who waited for the row would get them as they were before.
    route = Route.objects.select_for_update().filter(task=task, subject=subject).first()
    if route is None:
        raise NotFound
    state = route_state(route)
    for place, name in (believed or {}).items():
        if state[place] != name:
            detail = f"{state[place] or 'Nothing'} is {place}, not {name or 'nothing'}: it was changed meanwhile."
            raise Conflict(detail, code="route_changed", extra={"live": state["live"], "canary": state["canary"]})
    return route


def _set(route: Route, live: Adapter | None, **canary: Any) -> None:
    """Without the fields of a canary there is none any more."""
    route.live = live
    for field, value in {"canary": None, "canary_share": 0.0, "canary_started_at": None, **canary}.items():
        setattr(route, field, value)
    route.save()


def _recorded(route: Route, action: str, before: dict[str, Any], **why: Any) -> Route:
    RouteChange.objects.create(route=route, action=action, before=before, after=route_state(route), **why)
    return route


def _nothing_before(detail: str) -> Conflict:
    return Conflict(detail, code="nothing_to_roll_back")


def _live_before(route: Route) -> Adapter | None:
    """What was live before the present one; None is the task's, of a subject's route. Promotions nest: each that was
    rolled back is as if it had not been. Raises `Conflict` where only the base model is left."""
    lives: list[str | None] = []
    for action, before, after in route.changes.order_by("id").values_list("action", "before", "after"):
        if action in (Action.PROMOTE, Action.COMPLETE):
            lives.append(before["live"])
        elif before["live"] != after["live"]:
            while lives and lives.pop() != after["live"]:
                pass
    adapters = Adapter.objects.in_bulk([name for name in lives if name], field_name="name")
    for name in reversed(lives):
        if name is not None and (adapter := adapters.get(name)) and adapter.is_servable:
            return adapter
        if name is None and route.subject and adapter_live(task=route.task):
            return None
    raise _nothing_before(f"Before {route.live} nothing was live that can be served: promote another.")


# --- outcomes ---


# Codes of FAILED jobs that only the adapter can be blamed for; others are the caller's own, or the machine's.
ADAPTERS_FAULT = ("adapter_not_found", "adapter_refused")


def outcome_record(job: Job) -> dict[str, Any]:
    """When a job ends whose answerer a route picked, in the same transaction: note how. One that is repeated stays as
    it ended first; what was cancelled, or failed by the caller's fault or the machine's, says nothing."""
    if "task" in job.request and job.state != State.CANCELLED:
        adapter = (job.request["adapter"] or "").rpartition("@")[2]
        failed = job.state == State.ERRORED or (job.error or {}).get("code") in ADAPTERS_FAULT
        if failed or job.state == State.SUCCEEDED:
            outcome = Outcome(
                job_id=job.id,
                voter=_voter(job),
                task=job.request["task"],
                subject=job.request["subject"],
                adapter=adapter,
                failed=failed,
                asked_at=job.created_at,
            )
            Outcome.objects.bulk_create([outcome], ignore_conflicts=True)
        labels = (job.request["task"], adapter or BASE, job.state)
        transaction.on_commit(lambda: ANSWERS.labels(*labels).inc())
    return {}


def _voter(job: Job) -> str:
    """Who counts once: the same for all of a user's answers, and without our key nobody's."""
    return salted_hmac("inference.outcome", str(job.user_id), algorithm="sha256").hexdigest() if job.user_id else ""


def outcome_rate(*, job_id: UUID, thumb_up: bool | None) -> None:
    """Note what the user thought of an answer. The first thumb counts: one that is changed or taken back later (None)
    has been looked at."""
    if thumb_up is None:
        return
    unrated = Outcome.objects.filter(job_id=job_id, thumb_up=None)
    if unrated.update(thumb_up=thumb_up, rated_at=timezone.now()):
        outcome = Outcome.objects.get(job_id=job_id)
        THUMBS.labels(outcome.task, outcome.adapter or BASE, "up" if thumb_up else "down").inc()


def outcome_delete_expired() -> int:
    """Delete outcomes after the retention of their jobs, but for those that a running canary is tested by."""
    limit = timezone.now() - timedelta(days=env.JOB_RETENTION_DAYS)
    oldest = Route.objects.aggregate(oldest=Min("canary_started_at"))["oldest"]
    return delete_in_batches(Outcome.objects.filter(asked_at__lt=min(limit, oldest or limit)))


# --- uploads ---


def uploads_delete_forgotten() -> int:
    """Delete what was uploaded more than a day ago and no job is still to check; returns how many uploads.

    The end of its job deletes an upload, unless the store did not answer then, or there never was a job.
    """
    old = set(store.uploads(before=timezone.now() - UPLOAD_AGE))
    awaited = Job.objects.filter(state__in=ACTIVE, request__folder__in=old).values_list("request__folder", flat=True)
    forgotten = old - set(awaited)
    for folder in forgotten:
        store.delete(folder)
    return len(forgotten)


# --- models of the settings ---


def models_register(**_: Any) -> None:
    """Note since when each model of the settings is served; `migrate` calls this."""
    SettledModel.objects.bulk_create([SettledModel(name=model.id) for model in SETTLED], ignore_conflicts=True)


# --- answers ---


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

    A repeat with the same key gets the jobs of the first request. Raises `ValidationError` for messages that can never
    fit beside the answer that is asked for, `TooManyRequests` and `Conflict`.
    """
    require_room(messages, field="messages", answer=sampling["max_tokens"] or 1)
    seed = randbelow(SEEDS) if sampling["seed"] is None else sampling["seed"]
    answerer = routed(task=model.task, user=user) if model.task else {"adapter": model.adapter}
    requests: list[dict[str, Any]] = [
        {"messages": messages, "overflow": "refuse", "sampling": {**sampling, "seed": (seed + i) % SEEDS}, **answerer}
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
    job_admit(user=user, kind=kind, count=len(requests))
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
