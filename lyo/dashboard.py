"""The admin's first page: what waits, what is being done, what failed, and whether all is well.

Each query reads an index on live jobs or on `finished_at`, so the page costs what the last hour holds.
"""

import json
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Aggregate, Count, DurationField, ExpressionWrapper, F, Max, Q, QuerySet
from django.db.models.functions import TruncMinute
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django_celery_beat.models import PeriodicTask

from apps.common.formats import duration
from apps.jobs.dispatch import QUEUES
from apps.jobs.models import Job, State
from apps.jobs.selectors import queue_depths, schedules_disabled, schedules_never_due, schedules_overdue
from lyo import env
from lyo.ops import Check, readiness

WINDOW = timedelta(hours=1)
RED, AMBER = "danger", "warning"  # unfold's names
LABELS = {RED: "Attention", AMBER: "Look here"}
INTERACTIVE = (timedelta(minutes=1), timedelta(seconds=env.JOB_DEADLINE_S))  # of waiting: it is amber, and red
PATIENCE = dict.fromkeys(("train", "evaluate"), (timedelta(hours=6), timedelta(days=1)))  # their jobs take hours
STALE = timedelta(hours=1)  # a schedule that is so late has stopped
FAILURES_SHOWN = 8
COLOURS = {
    State.QUEUED: "#3b82f6",
    State.RUNNING: "#a855f7",
    State.SUCCEEDED: "#22c55e",
    State.FAILED: "#f97316",
    State.ERRORED: "#ef4444",
    State.CANCELLED: "#94a3b8",
}
_AXIS: dict[str, Any] = {"stacked": True, "grid": {"display": False}, "ticks": {"color": "#9ca3af"}}
CHART_OPTIONS = json.dumps(
    {
        "animation": False,
        "maintainAspectRatio": False,
        "plugins": {"legend": {"align": "end", "labels": {"boxHeight": 8, "boxWidth": 8, "color": "#9ca3af"}}},
        "scales": {
            "x": {**_AXIS, "ticks": {**_AXIS["ticks"], "maxTicksLimit": 7, "maxRotation": 0}},
            "y": {**_AXIS, "grid": {"color": "#9ca3af33"}, "ticks": {**_AXIS["ticks"], "precision": 0}},
        },
    }
)


class Percentile(Aggregate):
    """The value below which a `fraction` of the rows lies, interpolated between two rows (PostgreSQL)."""

    function = "percentile_cont"
    template = "%(function)s(%(fraction)s) WITHIN GROUP (ORDER BY %(expressions)s)"
    output_field = DurationField()


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the work's figures to the page for those who may see jobs; unfold calls this."""
    context["title"] = "Overview"
    if request.user.has_perm("jobs.view_job"):
        context |= work()
    return context


def work() -> dict[str, Any]:
    """This moment and the last hour, in the form in which the template shows them."""
    now = timezone.now()
    recent = Job.objects.filter(finished_at__gte=now - WINDOW)
    checks = readiness()
    depths = queue_depths()
    minutes, ended = _ended_by_minute(recent, now)
    notices = _notices(checks, depths, {state: sum(counts) for state, counts in ended.items()}, now)
    return {
        "chart_options": CHART_OPTIONS,
        "notices": notices,
        "health": notices[0]["level"] if notices else None,
        "health_label": LABELS[notices[0]["level"]] if notices else "",
        "cards": [
            _card("Waiting", "now", sum(row["waiting"] for row in depths.values()), State.QUEUED),
            _card("Running", "now", sum(row["running"] for row in depths.values()), State.RUNNING),
            *(
                _card(str(state.label), "last hour", sum(ended[state]), state)
                for state in (State.SUCCEEDED, State.FAILED, State.ERRORED)
            ),
        ],
        "queue_chart": _chart(
            list(QUEUES),
            {
                State.QUEUED: [depths[queue]["waiting"] if queue in depths else 0 for queue in QUEUES],
                State.RUNNING: [depths[queue]["running"] if queue in depths else 0 for queue in QUEUES],
            },
        ),
        "throughput_chart": _chart(minutes, {state: ended[state] for state in (State.SUCCEEDED, State.CANCELLED)}),
        "failures_chart": _chart(minutes, {state: ended[state] for state in (State.FAILED, State.ERRORED)}),
        "waited": _waited(recent),
        "queue_table": _queue_table(depths, checks, now),
        "worker_table": _worker_table(now),
        "failure_table": _failure_table(recent),
    }


def _notices(
    checks: dict[str, Check], depths: dict[str, Any], ended: dict[State, int], now: datetime
) -> list[dict[str, str]]:
    """All that is not as it should be, the worst first, each with a link to where it can be seen."""
    notices = []

    def notice(level: str, text: str, href: str) -> None:
        notices.append({"level": level, "text": text, "href": href})

    for name, check in checks.items():
        if not check.ok:
            queue = name.removeprefix("queue:")
            notice(RED, f"{name}: {check.detail}", "/readyz" if queue == name else _list_url(queue=queue))
    for state, level in ((State.ERRORED, RED), (State.FAILED, AMBER)):
        if count := ended[state]:
            notice(level, f"{count} {state.label.lower()} in the last hour", _list_url(state__exact=state))
    for queue, depth in depths.items():
        waits = now - (depth["oldest"] or now)
        amber, red = PATIENCE.get(queue, INTERACTIVE)
        if waits > amber:
            level = RED if waits > red else AMBER
            text = f"{queue}: the oldest job has waited for {duration(waits)}"
            notice(level, text, _list_url(queue=queue, state__exact=State.QUEUED))
    for task, why in schedules_never_due():
        notice(RED, f"{task.name} is never due: {why}", _schedule_url(task))
    for task, late in schedules_overdue():
        level = RED if late > STALE else AMBER
        notice(level, f"{task.name} should have run {duration(late)} ago", _schedule_url(task))
    for task in schedules_disabled():
        notice(AMBER, f"{task.name} is disabled, and Lyo counts on it", _schedule_url(task))
    return sorted(notices, key=lambda notice: list(LABELS).index(notice["level"]))


def _ended_by_minute(recent: QuerySet[Job], now: datetime) -> tuple[list[str], dict[State, list[int]]]:
    """The window's minutes, and for each state how many jobs ended in it in each of them."""
    first = (now - WINDOW).replace(second=0, microsecond=0)
    minutes = [first + timedelta(minutes=i) for i in range(round(WINDOW.total_seconds() / 60) + 1)]
    by_minute = recent.annotate(minute=TruncMinute("finished_at")).order_by().values_list("state", "minute")
    counts = {(state, minute): jobs for state, minute, jobs in by_minute.annotate(jobs=Count("id"))}
    labels = [timezone.localtime(minute).strftime("%H:%M") for minute in minutes]
    return labels, {state: [counts.get((state, minute), 0) for minute in minutes] for state in State}


def _waited(recent: QuerySet[Job]) -> dict[str, str]:
    wait = ExpressionWrapper(F("started_at") - F("created_at"), DurationField())
    row = recent.aggregate(median=Percentile(wait, fraction=0.5), p95=Percentile(wait, fraction=0.95))
    return {name: duration(value) for name, value in row.items()}


def _queue_table(depths: dict[str, Any], checks: dict[str, Check], now: datetime) -> dict[str, Any]:
    rows = []
    for queue in QUEUES:
        oldest = depths[queue]["oldest"] if queue in depths else None
        link = format_html('<a class="text-link" href="{}">{}</a>', _list_url(queue=queue), queue)
        rows.append([link, duration(oldest and now - oldest), checks[f"queue:{queue}"].detail])
    return {"headers": ["Queue", "Oldest waits", "Consumed"], "rows": rows}


def _worker_table(now: datetime) -> dict[str, Any]:
    """Those who hold jobs now or ended some in the window."""
    rows = (
        Job.objects.filter(Q(finished_at__gte=now - WINDOW) | Q(state=State.RUNNING))
        .exclude(worker="")
        .order_by("worker")
        .values_list("worker")
        .annotate(
            running=Count("id", filter=Q(state=State.RUNNING)),
            ended=Count("id", filter=~Q(state=State.RUNNING)),
            errored=Count("id", filter=Q(state=State.ERRORED)),
            last=Max("finished_at"),
        )
    )
    return {
        "headers": ["Worker", "Running", "Ended", "Errored", "Last ended"],
        "rows": [[*row[:-1], f"{duration(now - row[-1])} ago" if row[-1] else "-"] for row in rows],
    }


def _failure_table(recent: QuerySet[Job]) -> dict[str, Any]:
    failed = recent.filter(state__in=(State.FAILED, State.ERRORED)).order_by("-finished_at")
    rows = []
    for job in failed.only("kind", "state", "error", "finished_at")[:FAILURES_SHOWN]:
        url = reverse("admin:jobs_job_change", args=[job.id])
        link = format_html('<a class="text-link" href="{}">{}</a>', url, str(job.id)[:8])
        ended = timezone.localtime(job.finished_at).strftime("%H:%M:%S")
        rows.append([link, job.kind, State(job.state).label, ended, (job.error or {}).get("code", "")])
    return {"headers": ["Job", "Kind", "State", "Ended", "Error"], "rows": rows}


def _card(title: str, when: str, value: int, state: State) -> dict[str, Any]:
    return {"title": title, "when": when, "value": value, "href": _list_url(state__exact=state)}


def _chart(labels: list[str], series: dict[State, list[int]]) -> str:
    """Stacked bars, as Chart.js takes them."""
    bars = [{"label": state.label, "data": data, "backgroundColor": COLOURS[state]} for state, data in series.items()]
    return json.dumps({"labels": labels, "datasets": bars})


def _schedule_url(task: PeriodicTask) -> str:
    return reverse("admin:django_celery_beat_periodictask_change", args=[task.pk])


def _list_url(**filters: str) -> str:
    return reverse("admin:jobs_job_changelist", query=filters)
