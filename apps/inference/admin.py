"""Routes with their canaries' tests, and the page of engines, which has no table behind it: what each worker's does."""

from collections.abc import Callable
from datetime import timedelta
from math import log
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from redis.exceptions import RedisError
from rest_framework.exceptions import APIException
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.dataclasses import ActionDialog
from unfold.decorators import action, display
from unfold.forms import BaseDialogForm
from unfold.widgets import UnfoldAdminTextInputWidget

from apps.common.formats import duration
from apps.inference.models import Route, RouteChange
from apps.inference.selectors import believed, canary_test, engine_list, routes_seen
from apps.inference.services import route_complete, route_rollback

SHORT_DIGEST = 12


# --- routes ---


class RouteChangeInline(TabularInline):
    model = RouteChange
    fields = readonly_fields = ("created_at", "action", "user", "now_live", "now_canary", "reason", "against")
    verbose_name_plural = "Changes"
    per_page = 50
    hide_title = True

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).select_related("user")

    @admin.display(description="Then live")
    def now_live(self, change: RouteChange) -> str:
        return change.after["live"] or "the base model"

    @admin.display(description="Canary", empty_value="-")
    def now_canary(self, change: RouteChange) -> str | None:
        return f"{change.after['canary']}, {change.after['canary_share']:.0%}" if change.after["canary"] else None

    @admin.display(description="Overridden", empty_value="-")
    def against(self, change: RouteChange) -> str:
        return " ".join(change.overridden)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReasonForm(BaseDialogForm):
    """Keeps how the route was when the dialog was opened: of two who decide at once, the second is told."""

    reason = forms.CharField(max_length=1000, required=False, widget=UnfoldAdminTextInputWidget)
    seen = forms.JSONField(required=False, widget=forms.HiddenInput, initial=routes_seen)


def _asks(title: str, description: str, button: str) -> ActionDialog:
    return {"title": title, "description": description, "form_class": ReasonForm, "form_submit_text": button}


@admin.register(Route)
class RouteAdmin(ModelAdmin):
    """Routes are made by promoting an adapter, and changed only as `services` allows."""

    list_display = ("__str__", "live_label", "canary", "share", "canary_started_at", "updated_at")
    list_filter = (("task", ChoicesDropdownFilter), ("subject", ChoicesDropdownFilter))
    list_filter_submit = True
    list_select_related = ("live", "canary")
    fields = ("task", "subject", "live_label", "canary", "share", "canary_started_at")
    readonly_fields = ("live_label", "share")
    inlines = (RouteChangeInline,)
    actions_detail = ("complete", "roll_back")
    change_form_before_template = "admin/canary_test.html"

    @display(description="Live", ordering="live", label=True)
    def live_label(self, route: Route) -> str:
        return route.live.name if route.live else "the task's" if route.subject else "the base model"

    @admin.display(description="Canary's share", ordering="canary_share", empty_value="-")
    def share(self, route: Route) -> str | None:
        return f"{route.canary_share:.0%}" if route.canary else None

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        route = self.get_object(request, object_id) if object_id else None
        test = canary_test(route) if route else None
        shown = {"table": _test_table(test), "bars": _evidence_bars(test)} if test else {}
        return super().changeform_view(request, object_id, form_url, {**(extra_context or {}), **shown})

    @action(
        description="Complete the canary",
        permissions=["operate"],
        dialog=_asks("Complete the canary", "It becomes live, for everybody.", "Complete"),
    )
    def complete(self, request: HttpRequest, form: ReasonForm, object_id: UUID) -> HttpResponse:
        return self._change(request, form, object_id, route_complete, "completed")

    @action(
        description="Roll back",
        permissions=["operate"],
        dialog=_asks("Roll back", "The canary ends; without one, what was live before is live again.", "Roll back"),
    )
    def roll_back(self, request: HttpRequest, form: ReasonForm, object_id: UUID) -> HttpResponse:
        return self._change(request, form, object_id, route_rollback, "rolled back")

    def _change(
        self, request: HttpRequest, form: ReasonForm, object_id: UUID, change: Callable[..., Route], done: str
    ) -> HttpResponse:
        route = Route.objects.get(id=object_id)
        try:
            change(
                task=route.task,
                subject=route.subject,
                user=request.user,
                reason=form.cleaned_data["reason"],
                believed=believed(form.cleaned_data["seen"], task=route.task, subject=route.subject),
            )
            self.message_user(request, f"{route} was {done}.", messages.SUCCESS)
        except APIException as refusal:
            self.message_user(request, str(refusal.detail), messages.ERROR)
        return HttpResponse(headers={"HX-Redirect": reverse("admin:inference_route_change", args=[object_id])})

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Route | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Route | None = None) -> bool:
        return False

    def has_operate_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return request.user.has_perm("inference.change_route")


def _test_table(test: dict[str, Any]) -> dict[str, Any]:
    """A row for each measure: both arms, their difference, and what it may be."""
    rows = []
    for name, measure in test["measures"].items():
        low, high = measure["difference"]
        rows.append(
            [
                name.replace("_", " "),
                *(_arm(measure[arm]) for arm in ("live", "canary")),
                f"{low:+.1%} to {high:+.1%}",
                f"{measure['margin']:+.1%}",
                f"{measure['evidence']:.3g} of {measure['threshold']:g}",
            ]
        )
    return {"headers": ["Measure", "Live", "Canary", "Canary less live", "It may be", "Evidence of more"], "rows": rows}


def _arm(arm: dict[str, Any]) -> str:
    return f"{arm['rate']:.1%}: {arm['bad']} of {arm['n']}" if arm["n"] else "nothing yet"


def _evidence_bars(test: dict[str, Any]) -> list[dict[str, Any]]:
    """How far the evidence against the canary has come, in logarithms: at 100% it is rolled back."""
    bars = []
    for name, measure in test["measures"].items():
        come = log(max(measure["evidence"], 1)) / log(measure["threshold"])
        bars.append({"title": name.replace("_", " ").capitalize(), "value": round(100 * min(come, 1))})
    return bars


# --- engines ---


@permission_required("jobs.view_job", raise_exception=True)
def engines(request: HttpRequest) -> TemplateResponse:
    try:
        table = _engine_table(engine_list())
    except RedisError:
        table = None
    return TemplateResponse(
        request, "admin/engines.html", {**admin.site.each_context(request), "title": "Engines", "table": table}
    )


def _urls() -> list[URLPattern]:
    return [path("engines/", admin.site.admin_view(engines), name="engines")]


admin.site.extra_urls = _urls  # type: ignore[attr-defined]  # unfold's site asks for it


def _engine_table(engines: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "headers": ["Worker", "Model", "Device", "Up", "Batch", "Waiting", "Tokens/s", "KV cache", "Prefix hits"],
        "rows": [_engine_row(engine) for engine in engines],
    }


def _engine_row(engine: dict[str, Any]) -> dict[str, Any]:
    """An engine's cells and, below them, the table of its adapters."""
    stats = engine["stats"]
    cells = [
        f"{engine['worker']}, process {engine['pid']}",
        f"{engine['model']} {_short(engine['digest'])}",
        f"{engine['device']}, {engine['dtype']}",
        duration(timedelta(seconds=engine["at"] - engine["started_at"])),
        f"{stats['running']} of {stats['batch_limit']}",
        f"{stats['waiting']}: {stats['trouble']}" if stats["trouble"] else stats["waiting"],
        f"{engine['tokens_per_second']:.1f}",
        f"{_share(stats['kv_tokens'], stats['kv_capacity_tokens'])} used, "
        f"{_share(stats['kv_retained_tokens'], stats['kv_capacity_tokens'])} kept",
        _share(stats["cached_tokens"], stats["prompt_tokens"]),
    ]
    adapters = [
        [
            adapter["name"],
            adapter["rank"],
            f"{adapter['megabytes']:.1f}",
            "yes" if adapter["pinned"] else "no",
            adapter["running"],
            f"{duration(timedelta(seconds=engine['at'] - adapter['last_used']))} ago",
        ]
        for adapter in stats["adapters"]
    ]
    headers = ["Adapter", "Rank", "MB", "Pinned", "Running", "Last used"]
    return {"cols": cells, **({"table": {"headers": headers, "rows": adapters}} if adapters else {})}


def _short(digest: str) -> str:
    """A sha256 to be told apart by; the name that a remote server has instead is kept whole."""
    return digest if ":" in digest else digest[:SHORT_DIGEST]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
