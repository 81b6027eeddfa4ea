import json
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django_celery_beat.admin import CrontabScheduleAdmin as BeatCrontabScheduleAdmin
from django_celery_beat.admin import IntervalSchedule, PeriodicTask
from django_celery_beat.admin import PeriodicTaskAdmin as BeatPeriodicTaskAdmin
from django_celery_beat.admin import PeriodicTaskForm as BeatPeriodicTaskForm
from django_celery_beat.admin import TaskSelectWidget as BeatTaskSelectWidget
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, SolarSchedule
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import ChoicesDropdownFilter, DropdownFilter, RangeDateTimeFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from apps.common.formats import duration
from apps.jobs import services
from apps.jobs.dispatch import QUEUES, ROUTES
from apps.jobs.models import ACTIVE, Job, State
from apps.jobs.selectors import crontab_errors

SHORT_ID = 8
STATE_COLOURS = {
    State.QUEUED.label: "info",
    State.RUNNING.label: "primary",
    State.SUCCEEDED.label: "success",
    State.FAILED.label: "warning",
    State.ERRORED.label: "danger",
    State.CANCELLED.label: "default",
}


class KindFilter(DropdownFilter):
    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(kind, kind) for kind in ROUTES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Job]) -> QuerySet[Job]:
        return queryset.filter(kind=self.value()) if self.value() else queryset


class QueueFilter(DropdownFilter):
    title = "queue"
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(queue, queue) for queue in QUEUES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Job]) -> QuerySet[Job]:
        return queryset.filter(queue=self.value()) if self.value() else queryset


@admin.register(Job)
class JobAdmin(ModelAdmin):
    """Shows jobs; changes them only as `jobs.services` allows."""

    list_display = (
        *("short_id", "kind", "state_label", "user", "attempt", "crashes", "lease_losses", "worker"),
        *("waited", "ran", "created_at"),
    )
    list_filter = (
        ("state", ChoicesDropdownFilter),
        KindFilter,
        QueueFilter,
        ("created_at", RangeDateTimeFilter),
    )
    list_filter_submit = True
    list_select_related = ("user",)
    search_fields = ("user__username",)
    search_help_text = "An id, or how it begins, or a user name."
    show_full_result_count = False
    actions = ("cancel", "retry")
    fieldsets = (
        (None, {"fields": ("id", "kind", "queue", "state_label", "user", "keep")}),
        ("Work", {"fields": ("request_json", "result_json", "error_json")}),
        ("Times", {"fields": ("created_at", "started_at", "finished_at", "deadline_at", "waited", "ran")}),
        ("Attempts", {"fields": ("attempt", "crashes", "max_attempts", "lease_losses", "worker")}),
        ("Lease", {"fields": ("lease_expires_at", "worker_died", "resend_at")}),
    )
    readonly_fields = ("state_label", "waited", "ran", "request_json", "result_json", "error_json")

    @admin.display(description="ID")
    def short_id(self, job: Job) -> str:
        return str(job.id)[:SHORT_ID]

    @display(description="State", ordering="state", label=STATE_COLOURS)
    def state_label(self, job: Job) -> str:
        return State(job.state).label

    @admin.display(description="Waited")
    def waited(self, job: Job) -> str:
        return duration((job.started_at or job.finished_at or timezone.now()) - job.created_at)

    @admin.display(description="Ran")
    def ran(self, job: Job) -> str:
        return duration((job.finished_at or timezone.now()) - job.started_at if job.started_at else None)

    @admin.display(description="Request")
    def request_json(self, job: Job) -> str:
        return _pretty(job.request)

    @admin.display(description="Result")
    def result_json(self, job: Job) -> str:
        return _pretty(job.result)

    @admin.display(description="Error")
    def error_json(self, job: Job) -> str:
        return _pretty(job.error)

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel(self, request: HttpRequest, jobs: QuerySet[Job]) -> None:
        chosen = list(jobs)  # before they change: the list may be filtered by state
        done = sum(services.job_cancel(job=job).state == State.CANCELLED for job in chosen if job.state in ACTIVE)
        self._report(request, done, len(chosen), "cancelled", "had ended already")

    @admin.action(description="Run again", permissions=["operate"])
    def retry(self, request: HttpRequest, jobs: QuerySet[Job]) -> None:
        chosen = list(jobs)
        done = sum(services.job_retry(job=job) for job in chosen)
        self._report(request, done, len(chosen), "queued again", "had not failed")

    def _report(self, request: HttpRequest, done: int, asked: int, what: str, why_not: str) -> None:
        rest = f"; {asked - done} {why_not}" if asked > done else ""
        self.message_user(request, f"{done} of {asked} {what}{rest}.", messages.SUCCESS if done else messages.WARNING)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Job], search_term: str
    ) -> tuple[QuerySet[Job], bool]:
        """An id's beginning is a range of the primary key; anything else is looked for in user names."""
        digits = search_term.strip().replace("-", "")
        if len(digits) >= SHORT_ID:
            try:
                first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
            except ValueError:
                pass
            else:
                return queryset.filter(id__range=(first, last)), False
        return super().get_search_results(request, queryset, search_term)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Job | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Job | None = None) -> bool:
        return super().has_delete_permission(request, obj) and (obj is None or obj.is_terminal)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("jobs.change_job")


def _pretty(value: Any) -> str:
    if value is None:
        return "-"
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return format_html('<pre style="white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>', text)


# --- schedules: django-celery-beat's, in unfold's clothes; nobody here plans by the sun ---


class TaskSelectWidget(UnfoldAdminSelectWidget, BeatTaskSelectWidget):
    pass


class PeriodicTaskForm(BeatPeriodicTaskForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["task"].widget = UnfoldAdminTextInputWidget()
        self.fields["regtask"].widget = TaskSelectWidget()


class CrontabScheduleForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean(self) -> dict[str, Any]:
        if errors := crontab_errors(CrontabSchedule(**self.cleaned_data)):
            raise ValidationError(errors)
        return self.cleaned_data


for model in (PeriodicTask, IntervalSchedule, CrontabSchedule, SolarSchedule, ClockedSchedule):
    admin.site.unregister(model)


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(BeatPeriodicTaskAdmin, ModelAdmin):
    form = PeriodicTaskForm
    list_display = ("name", "enabled", "interval", "crontab", "last_run_at")
    list_filter = ("enabled",)
    list_select_related = ("interval", "crontab")
    date_hierarchy = None

    # As they are there, but not for those who may only look.
    @admin.action(description="Enable", permissions=["change"])
    def enable_tasks(self, request: HttpRequest, tasks: QuerySet[PeriodicTask]) -> None:
        super().enable_tasks(request, tasks)

    @admin.action(description="Disable", permissions=["change"])
    def disable_tasks(self, request: HttpRequest, tasks: QuerySet[PeriodicTask]) -> None:
        super().disable_tasks(request, tasks)

    @admin.action(description="Enable those that are disabled, and disable the others", permissions=["change"])
    def toggle_tasks(self, request: HttpRequest, tasks: QuerySet[PeriodicTask]) -> None:
        super().toggle_tasks(request, tasks)

    @admin.action(description="Run now", permissions=["change"])
    def run_tasks(self, request: HttpRequest, tasks: QuerySet[PeriodicTask]) -> None:
        super().run_tasks(request, tasks)


@admin.register(IntervalSchedule)
class IntervalScheduleAdmin(ModelAdmin):
    pass


@admin.register(CrontabSchedule)
class CrontabScheduleAdmin(BeatCrontabScheduleAdmin, ModelAdmin):
    form = CrontabScheduleForm
