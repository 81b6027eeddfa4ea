"""The models that a client may name, which of them a route picks, how its picks do, and the engines that answer."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from math import exp, log
from typing import Any
from uuid import UUID

from django.db.models import Case, Count, Exists, OuterRef, Q, QuerySet, Value, When
from rest_framework.exceptions import NotFound

from apps.common import redis
from apps.common.constants import Task
from apps.common.streaming import paged
from apps.inference.errors import ModelNotFound
from apps.inference.models import DIGEST, Adapter, Outcome, Route, RouteChange, SettledModel, served_names
from apps.inference.sequential import Arm, difference, log_evidence
from apps.users.models import User
from lyo import env

ENGINE_KEY = "lyo:engine:"  # then the worker's name and process: where the cache server has its engine's last report
ADAPTER_NAME = re.compile(rf"[^@]+@({DIGEST})")
ADAPTERS_LISTED = 200  # in /v1/models, which has no pages; an older one can still be named
Believed = Mapping[str, str | None]  # by the caller, of a route: names of its `live` and `canary`, or of one of them
MOST_EVIDENCE = 700.0  # its exponential is the most that a float holds


# --- models by name ---


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a request may name as its model: one of the settings, an adapter, or whatever the route of a task picks."""

    id: str
    kind: str  # of the jobs that it serves
    alias: str | None = None
    adapter: str | None = None
    task: Task | None = None
    created_at: datetime | None = None  # None: it is not registered yet
    context_tokens: int = env.CONTEXT_TOKENS


BASE = ServedModel(env.MODEL, kind="chat")
TUTOR = ServedModel("tutor", kind="chat", task=Task.TUTORING)
EMBEDDER = ServedModel("all-MiniLM-L6-v2", kind="embed", alias="embedding", context_tokens=256)
SETTLED = (BASE, TUTOR, EMBEDDER)


def model_list() -> list[ServedModel]:
    """All models, the base model first, then the others of the settings and the newest adapters."""
    newest = _servable().order_by("-created_at", "-id").only("name", "created_at")[:ADAPTERS_LISTED]
    return [*_settled_models(), *map(_served, newest)]


def model_get(*, model_id: str, kind: str | None = None) -> ServedModel:
    """The model of that id or alias; raises `ModelNotFound`, also where it does not serve `kind`."""
    models = _settled_models()
    if match := ADAPTER_NAME.fullmatch(model_id):
        models += map(_served, _servable().filter(digest=match[1]))
    for model in models:
        if model_id in (model.id, model.alias) and kind in (None, model.kind):
            return model
    raise ModelNotFound(model_id)


def _settled_models() -> list[ServedModel]:
    created_at = dict(SettledModel.objects.values_list("name", "created_at"))
    return [replace(model, created_at=created_at.get(model.id)) for model in SETTLED]


def _served(adapter: Adapter) -> ServedModel:
    return ServedModel(adapter.name, kind="chat", adapter=adapter.name, created_at=adapter.created_at)


def _servable() -> QuerySet[Adapter]:
    return Adapter.objects.filter(erased_at=None, base_model__in=served_names())


# --- adapters ---


class AdapterState:
    """Of an adapter, as its data and the routes say."""

    ERASED, LIVE, CANARY, IDLE = "erased", "live", "canary", "idle"
    ALL = (ERASED, LIVE, CANARY, IDLE)


def adapter_list(
    *, name: str | None = None, task: str | None = None, subject: str | None = None, state: str | None = None
) -> QuerySet[Adapter]:
    """Adapters, newest first, each with its `state`."""

    def on_a_route(place: str) -> Exists:
        return Exists(Route.objects.filter(**{place: OuterRef("pk")}))

    adapters = Adapter.objects.annotate(
        state=Case(
            When(erased_at__isnull=False, then=Value(AdapterState.ERASED)),
            When(on_a_route("live"), then=Value(AdapterState.LIVE)),
            When(on_a_route("canary"), then=Value(AdapterState.CANARY)),
            default=Value(AdapterState.IDLE),
        )
    )
    given = {"name": name, "task": task, "subject": subject, "state": state}
    return adapters.filter(**{field: value for field, value in given.items() if value is not None})


def adapter_get(*, adapter_id: UUID) -> Adapter:
    """The adapter with its `state`; raises `NotFound`."""
    adapter = adapter_list().filter(id=adapter_id).first()
    if adapter is None:
        raise NotFound
    return adapter


# --- routes ---


def route_list() -> QuerySet[Route]:
    return Route.objects.select_related("live", "canary")


def route_get(*, task: str, subject: str = "") -> Route:
    """Raises `NotFound` where nothing was ever promoted."""
    route = route_list().filter(task=task, subject=subject).first()
    if route is None:
        raise NotFound
    return route


def route_state(route: Route) -> dict[str, Any]:
    return {
        "live": route.live and route.live.name,
        "canary": route.canary and route.canary.name,
        "canary_share": route.canary_share,
    }


def routes_seen() -> dict[str, dict[str, Any]]:
    """How all routes are, to be kept with a form until it is sent: `believed` then says what its sender had seen."""
    return {f"{route.task}/{route.subject}": route_state(route) for route in route_list()}


def believed(seen: Any, *, task: str, subject: str = "") -> Believed | None:
    """seen: what came back of `routes_seen`, if anything did."""
    if not isinstance(seen, dict):
        return None
    state = seen.get(f"{task}/{subject}")
    return {place: state.get(place) if isinstance(state, dict) else None for place in ("live", "canary")}


def route_change_list(*, route: Route) -> QuerySet[RouteChange]:
    """What was done to a route, newest first."""
    return route.changes.select_related("user").order_by("-id")


def route_change_export(user: User) -> Iterator[dict[str, Any]]:
    fields = ("id", "route__task", "route__subject", "action", "before", "after", "reason", "created_at")
    return paged(RouteChange.objects.filter(user=user).values(*fields), "id")


def adapter_for(*, task: str, subject: str = "", user: User) -> Adapter | None:
    """Whose turn it is to answer the user, or None where that is the base model's.

    The same user gets the same while the route stays as it is. What is of another model is passed over. An adapter
    whose data were erased answers until its successor is promoted.
    """
    fields = [f"{place}__{field}" for place in ("live", "canary") for field in ("name", "base_model", "erased_at")]
    routes = route_list().filter(task=task, subject__in=("", subject)).only("subject", "canary_share", *fields)
    for route in routes.order_by("-subject"):
        for adapter in (route.canary if _has_canary(user, route) else None, route.live):
            if adapter and adapter.fits:
                return adapter
    return None


def adapter_live(*, task: str, subject: str = "") -> Adapter | None:
    """Who answers those that get no canary, or None where that is the base model."""
    routes = route_list().filter(task=task, subject__in=("", subject)).order_by("-subject")
    return next((live for live in (route.live for route in routes) if live and live.fits), None)


def routed(*, task: str, subject: str = "", user: User) -> dict[str, Any]:
    """What the request of a job says of who is to answer it, and for what the answer's outcome counts."""
    adapter = adapter_for(task=task, subject=subject, user=user)
    return {"adapter": adapter and adapter.name, "task": task, "subject": subject}


def _has_canary(user: User, route: Route) -> bool:
    """Of all users about `canary_share`, and of each canary others."""
    place = sha256(f"{user.pk} {route.canary_id}".encode()).digest()[:8]
    return int.from_bytes(place) < route.canary_share * 2**64


# --- how a canary does ---


@dataclass(frozen=True, slots=True)
class Measure:
    """A rate of bad outcomes: the canary's may be `margin` above live's.

    While nothing is asked of live beside the canary, its rate is taken for `ceiling` at most, or for what it was.
    """

    name: str
    margin: float
    ceiling: float


MEASURES = (
    Measure("failed", env.CANARY_ERROR_MARGIN, ceiling=0.2),
    Measure("thumbs_down", env.CANARY_THUMB_MARGIN, ceiling=0.5),
)
BASELINE = timedelta(days=7)  # how far back live's record is read where the canary leaves it no users


def canary_test(route: Route) -> dict[str, Any] | None:
    """The sequential test of a route's canary against what is live, as plain JSON; None without a canary.

    `measures` has for each the two arms' counts and rates, the `difference` in which the canary's rate less live's lies
    (a confidence sequence, both ends at `alpha`), the `margin` that it may have, the `evidence` that it has more (an
    e-value) and the `threshold` at which that is believed: then it is `worse`. The chance that a canary which keeps to
    the margins is ever found worse is LYO_CANARY_ALPHA at most.

    A canary that has all users is measured by what live did before, and by the ceilings: should most people's answers
    begin to fail then, it is rolled back.
    """
    if route.canary is None or route.canary_started_at is None:
        return None
    alpha = env.CANARY_ALPHA / len(MEASURES)
    live = adapter_live(task=route.task, subject=route.subject)
    arms = _arms(route, live, route.canary, route.canary_started_at)
    return {
        "live": live and live.name,
        "canary": route.canary.name,
        "alpha": alpha,
        "measures": {
            measure.name: _tested(measure, *arms[measure.name], alpha, alone=route.canary_share == 1)
            for measure in MEASURES
        },
    }


def _tested(measure: Measure, live: Arm, canary: Arm, alpha: float, alone: bool) -> dict[str, Any]:
    ceiling = max(measure.ceiling, live.rate or 0.0) if alone or not live.n else 1.0
    evidence = log_evidence(live, canary, measure.margin, ceiling)
    return {
        "live": {**asdict(live), "rate": live.rate},
        "canary": {**asdict(canary), "rate": canary.rate},
        "difference": [round(end, 4) for end in difference(live, canary, alpha)],
        "margin": measure.margin,
        "evidence": exp(min(evidence, MOST_EVIDENCE)),
        "threshold": 1 / alpha,
        "worse": evidence >= -log(alpha),
    }


def _arms(route: Route, live: Adapter | None, canary: Adapter, since: datetime) -> dict[str, tuple[Arm, Arm]]:
    """By measure, the people who were answered by live and by the canary, of what was asked since the canary began."""
    live_since = since - BASELINE if route.canary_share == 1 else since
    asked = ((live.digest if live else "", live_since), (canary.digest, since))
    outcomes = Outcome.objects.filter(task=route.task, **({"subject": route.subject} if route.subject else {}))
    of_live, of_canary = (outcomes.filter(adapter=digest, asked_at__gte=start) for digest, start in asked)
    rated_of_live, rated_of_canary = (rows.exclude(thumb_up=None) for rows in (of_live, of_canary))
    return {
        "failed": (_people(of_live, "recorded_at", failed=True), _people(of_canary, "recorded_at", failed=True)),
        "thumbs_down": (
            _people(rated_of_live, "rated_at", thumb_up=False),
            _people(rated_of_canary, "rated_at", thumb_up=False),
        ),
    }


def _people(outcomes: QuerySet[Outcome], at: str, **bad: bool) -> Arm:
    """Each person once, by their first outcome at the time `at`."""
    first = outcomes.exclude(voter="").order_by("voter", at, "job_id").distinct("voter")
    counted = Outcome.objects.filter(pk__in=first.values("pk"))
    return Arm(**counted.aggregate(n=Count("pk"), bad=Count("pk", filter=Q(**bad))))


# --- engines ---


def engine_list() -> list[dict[str, Any]]:
    """The last report of every engine that is alive, by worker; raises `RedisError` where the cache server is away.

    Each has `worker`, `pid`, `model`, `digest`, `device`, `dtype`, the Unix times `at` (of the report) and
    `started_at`, `tokens_per_second` of the last seconds, and `stats`: the fields of the worker's `EngineStats`.
    """
    cache = redis.cache()
    reports = (cache.get(key) for key in sorted(set(cache.scan_iter(f"{ENGINE_KEY}*", count=1000))))
    return [json.loads(report) for report in reports if report]
