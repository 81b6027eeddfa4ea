from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.html import format_html
from rest_framework.exceptions import APIException
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter, DropdownFilter, RangeDateTimeFilter
from unfold.decorators import action, display
from unfold.forms import BaseDialogForm
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from apps.common.constants import Subject, Task
from apps.inference.models import Adapter
from apps.inference.selectors import AdapterState, believed, routes_seen
from apps.training.admin.data import ReadOnly
from apps.training.models import Evaluation
from apps.training.selectors import adapters as selectors
from apps.training.services import adapters as services

STATE_COLOURS = {
    AdapterState.LIVE: "success",
    AdapterState.CANARY: "info",
    AdapterState.IDLE: "default",
    AdapterState.ERASED: "danger",
}


class StateFilter(DropdownFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(state, state) for state in AdapterState.ALL]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Adapter]) -> QuerySet[Adapter]:
        return queryset.filter(Q(("state", self.value()))) if self.value() else queryset


class EvaluationInline(ReadOnly, TabularInline):
    model = Evaluation
    fields = readonly_fields = ("created_at", "task", "subject", "passed", "failed")
    per_page = 50
    hide_title = True

    @admin.display(description="What held it back", empty_value="-")
    def failed(self, evaluation: Evaluation) -> str:
        return " ".join(evaluation.failures)


class PromoteForm(BaseDialogForm):
    task = forms.ChoiceField(choices=Task.choices, widget=UnfoldAdminSelectWidget)
    subject = forms.ChoiceField(
        choices=[("", "All without a route of their own"), *Subject.choices],
        required=False,
        widget=UnfoldAdminSelectWidget,
    )
    canary_share = forms.FloatField(
        min_value=0.001,
        max_value=1,
        required=False,
        help_text="Of the users, above 0 to 1: it becomes their canary. Empty: it becomes live.",
        widget=UnfoldAdminTextInputWidget,
    )
    override_reason = forms.CharField(
        max_length=1000,
        required=False,
        help_text="Why, although the gate holds it back. This is recorded.",
        widget=UnfoldAdminTextInputWidget,
    )
    seen = forms.JSONField(required=False, widget=forms.HiddenInput, initial=routes_seen)


@admin.register(Adapter)
class AdapterAdmin(ReadOnly, ModelAdmin):
    """Adapters come from training or by an import; routes are what changes about them."""

    list_display = ("name", "state_label", "task", "subject", "megabytes", "created_at")
    list_filter = (
        StateFilter,
        ("task", ChoicesDropdownFilter),
        ("subject", ChoicesDropdownFilter),
        ("created_at", RangeDateTimeFilter),
    )
    list_filter_submit = True
    search_fields = ("name", "digest", "dataset_version")
    show_full_result_count = False
    fields = ("name", "state_label", "task", "subject", "megabytes", "erased_at", "card")
    readonly_fields = ("state_label", "megabytes", "card")
    inlines = (EvaluationInline,)
    actions_detail = ("promote", "download")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Adapter]:
        return selectors.adapter_list().order_by("-created_at", "-id")

    @display(description="State", label=STATE_COLOURS)
    def state_label(self, adapter: Any) -> str:
        return adapter.state

    @admin.display(description="MB", ordering="size")
    def megabytes(self, adapter: Adapter) -> str:
        return f"{adapter.size / 2**20:.1f}"

    @admin.display(description="Model card")
    def card(self, adapter: Adapter) -> str:
        text = selectors.adapter_card(adapter)
        return format_html('<pre style="white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>', text)

    @action(
        description="Promote",
        permissions=["operate"],
        dialog={
            "title": "Promote",
            "description": "Live for all users, or as the canary of some. Needs an evaluation that let it through.",
            "form_class": PromoteForm,
            "form_submit_text": "Promote",
        },
    )
    def promote(self, request: Any, form: PromoteForm, object_id: UUID) -> HttpResponse:
        adapter = selectors.adapter_get(adapter_id=object_id)
        asked = {name: value for name, value in form.cleaned_data.items() if not name.startswith("_")}
        known = believed(asked.pop("seen"), task=asked["task"], subject=asked["subject"])
        try:
            route = services.adapter_promote(adapter=adapter, user=request.user, believed=known, **asked)
            self.message_user(request, f"{adapter} is on the route {route}.", messages.SUCCESS)
        except APIException as refusal:
            self.message_user(request, str(refusal.detail), messages.ERROR)
        return HttpResponse(headers={"HX-Redirect": reverse("admin:inference_adapter_change", args=[object_id])})

    @action(description="Download", permissions=["view"])
    def download(self, request: HttpRequest, object_id: UUID) -> HttpResponse:
        adapter = selectors.adapter_get(adapter_id=object_id)
        try:
            archive = b"".join(selectors.adapter_archive(adapter))
        except APIException as refusal:
            self.message_user(request, str(refusal.detail), messages.ERROR)
            return redirect("admin:inference_adapter_change", object_id)
        attachment = {"Content-Disposition": f'attachment; filename="{adapter.digest}.zip"'}
        return HttpResponse(archive, "application/zip", headers=attachment)

    def has_operate_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return request.user.has_perm("inference.change_route")
