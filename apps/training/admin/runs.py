import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter, RangeDateTimeFilter
from unfold.dataclasses import ActionDialog
from unfold.decorators import action, display
from unfold.forms import BaseDialogForm

from apps.common.errors import Conflict, TooManyRequests
from apps.common.formats import duration
from apps.training.admin.data import ReadOnly
from apps.training.models import Run, RunCheckpoint, RunEvent, RunState
from apps.training.selectors import runs as selectors
from apps.training.services import runs as services

STATE_COLOURS = {
    RunState.QUEUED.label: "info",
    RunState.RUNNING.label: "primary",
    RunState.PAUSED.label: "default",
    RunState.SUCCEEDED.label: "success",
    RunState.FAILED.label: "danger",
    RunState.CANCELLED.label: "default",
}
EVENTS_SHOWN = 20
CHART_OPTIONS = json.dumps({"animation": False, "maintainAspectRatio": False, "elements": {"point": {"radius": 0}}})


def _asks(title: str, description: str) -> ActionDialog:
    return {"title": title, "description": description, "form_class": BaseDialogForm, "form_submit_text": title}


class CheckpointInline(ReadOnly, TabularInline):
    model = RunCheckpoint
    fields = readonly_fields = ("step", "metrics", "adapter", "created_at")
    hide_title = True

    def get_queryset(self, request: HttpRequest) -> QuerySet[RunCheckpoint]:
        return super().get_queryset(request).select_related("adapter")


@admin.register(Run)
class RunAdmin(ReadOnly, ModelAdmin):
    """Shows runs as they go on; they are begun by /v1/fine_tuning/jobs and by schedules."""

    list_display = ("__str__", "state_label", "progress", "method", "task", "subject", "user", "took", "created_at")
    list_filter = (
        ("state", ChoicesDropdownFilter),
        ("task", ChoicesDropdownFilter),
        ("created_at", RangeDateTimeFilter),
    )
    list_filter_submit = True
    list_select_related = ("user",)
    search_fields = ("suffix", "adapter__name", "version__digest")
    show_full_result_count = False
    fields = (
        ("state_label", "progress", "took", "left"),
        "failure",
        ("adapter", "version", "replaces"),
        ("task", "subject", "suffix", "user"),
        "recipe",
        "weights",
        "metadata",
        "job",
    )
    readonly_fields = ("state_label", "progress", "took", "left", "failure")
    inlines = (CheckpointInline,)
    change_form_before_template = "admin/run_progress.html"
    actions_detail = ("pause_this", "resume_this", "cancel_this")

    @display(description="State", ordering="state", label=STATE_COLOURS)
    def state_label(self, run: Run) -> str:
        return RunState(run.state).label

    @admin.display(description="Step")
    def progress(self, run: Run) -> str:
        return f"{run.step} of {run.steps} ({run.step / run.steps:.0%})" if run.steps else "-"

    @admin.display(description="Ran")
    def took(self, run: Run) -> str:
        return duration((run.finished_at or timezone.now()) - run.started_at if run.started_at else None)

    @admin.display(description="Left")
    def left(self, run: Run) -> str:
        finish = selectors.run_data(run)["estimated_finish"]
        return f"{max(0, finish - timezone.now().timestamp()):.0f} s" if finish else "-"

    @admin.display(description="Error")
    def failure(self, run: Run) -> str:
        return f"{run.error['detail']} ({run.error['code']})" if run.error else "-"

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        run = Run.objects.filter(id=object_id).first() if object_id else None
        shown = (
            {"curve": _curve(run), "chart_options": CHART_OPTIONS, "events": _events(run), "run": run} if run else {}
        )
        return super().changeform_view(request, object_id, form_url, {**(extra_context or {}), **shown})

    def has_train_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return request.user.has_perm("training.train")

    @action(
        description="Pause",
        permissions=["train"],
        dialog=_asks("Pause", "The run ends at its next checkpoint, from which it can be resumed."),
    )
    def pause_this(self, request: HttpRequest, form: BaseDialogForm, object_id: UUID) -> HttpResponse:
        return self._change(request, object_id, services.run_pause)

    @action(
        description="Resume", permissions=["train"], dialog=_asks("Resume", "The run goes on from its last checkpoint.")
    )
    def resume_this(self, request: HttpRequest, form: BaseDialogForm, object_id: UUID) -> HttpResponse:
        return self._change(request, object_id, services.run_resume)

    @action(
        description="Cancel", permissions=["train"], dialog=_asks("Cancel", "The run ends, and no adapter is made.")
    )
    def cancel_this(self, request: HttpRequest, form: BaseDialogForm, object_id: UUID) -> HttpResponse:
        return self._change(request, object_id, services.run_cancel)

    def _change(self, request: HttpRequest, object_id: UUID, service: Callable[..., Run]) -> HttpResponse:
        try:
            run = service(run=Run.objects.get(id=object_id))
            self.message_user(request, f"{run} is {run.state}.", messages.SUCCESS)
        except (Conflict, TooManyRequests) as refusal:
            self.message_user(request, str(refusal.detail), messages.ERROR)
        return HttpResponse(headers={"HX-Redirect": reverse("admin:training_run_change", args=[object_id])})


def _curve(run: Run) -> str:
    """The losses by step, as Chart.js takes them."""
    points = selectors.loss_curve(run=run)
    training = {"label": "Training loss", "data": [loss for _, loss, _ in points], "borderColor": "#3b82f6"}
    validation = {"label": "Validation loss", "data": [loss for *_, loss in points], "borderColor": "#22c55e"}
    lines = [{**line, "borderWidth": 2, "spanGaps": True} for line in (training, validation)]
    return json.dumps({"labels": [step for step, *_ in points], "datasets": lines})


def _events(run: Run) -> dict[str, Any]:
    events = RunEvent.objects.filter(run=run, step=None)[:EVENTS_SHOWN]
    rows = [
        [timezone.localtime(event.created_at).strftime("%Y-%m-%d %H:%M:%S"), event.get_level_display(), event.message]
        for event in events
    ]
    return {"headers": ["Time", "Level", "Event"], "rows": rows}
