from hashlib import sha256
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from rest_framework.exceptions import APIException
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import action
from unfold.widgets import UnfoldAdminIntegerFieldWidget

from apps.training.models import Comparison, Pairing, Verdict
from apps.training.selectors import comparisons as selectors
from apps.training.services import comparisons as services
from apps.users.models import User

ASKED = ("task", "adapter", "judge", "evaluation_set")
SIDES = {"left": Verdict.OURS, "right": Verdict.THEIRS, "tie": Verdict.TIE}
MIRRORED = {Verdict.OURS: Verdict.THEIRS, Verdict.THEIRS: Verdict.OURS, Verdict.TIE: Verdict.TIE}


class ComparisonForm(forms.ModelForm):  # type: ignore[type-arg]
    """Whether it can be made shows when it is: there must be prompts, and settings for both outside models."""

    user: User
    count = forms.IntegerField(
        min_value=1, max_value=1000, initial=50, help_text="Prompts, at most.", widget=UnfoldAdminIntegerFieldWidget
    )

    class Meta:
        model = Comparison
        fields = ASKED

    def clean(self) -> None:
        if self.errors:
            return
        try:
            self.made, _ = services.comparison_create(user=self.user, **self.cleaned_data)
        except APIException as error:
            raise ValidationError(str(error.detail)) from error

    def save(self, commit: bool = True) -> Comparison:
        return self.made

    def save_m2m(self) -> None:
        """There is nothing of the kind."""


@admin.register(Comparison)
class ComparisonAdmin(ModelAdmin):
    """Made here or over REST; people judge here."""

    form = ComparisonForm
    list_display = ("__str__", "task", "judge", "answered", "user", "created_at")
    list_filter = (("task", ChoicesDropdownFilter), ("judge", ChoicesDropdownFilter))
    list_filter_submit = True
    list_select_related = ("adapter", "user")
    list_before_template = "admin/comparison_settings.html"
    show_full_result_count = False
    actions_detail = ("judge_replies",)

    def get_queryset(self, request: HttpRequest) -> Any:
        return selectors.comparison_list()

    def get_fields(self, request: HttpRequest, obj: Comparison | None = None) -> tuple[str, ...]:
        found = ("opponent", "judge_model", "answered", "win_rate_by_model", "win_rate_by_people", "job", "user")
        return (*ASKED, *found) if obj else (*ASKED, "count")

    def get_form(self, request: Any, obj: Comparison | None = None, change: bool = False, **kwargs: Any) -> Any:
        return type("Form", (super().get_form(request, obj, change, **kwargs),), {"user": request.user})

    def get_readonly_fields(self, request: HttpRequest, obj: Comparison | None = None) -> tuple[str, ...]:
        return self.get_fields(request, obj) if obj else ()

    @admin.display(description="Answered")
    def answered(self, comparison: Any) -> str:
        return f"{comparison.answered_count} of {comparison.pairings_count}"

    @admin.display(description="Win rate, judged by a model")
    def win_rate_by_model(self, comparison: Comparison) -> str:
        return _win_rate(comparison, "model")

    @admin.display(description="Win rate, judged by people")
    def win_rate_by_people(self, comparison: Comparison) -> str:
        return _win_rate(comparison, "people")

    @action(description="Judge replies", url_path="judge", permissions=["vote"])
    def judge_replies(self, request: Any, object_id: str) -> HttpResponse:
        """A page with the next prompt and both replies, of which nobody is told whose they are."""
        comparison = selectors.comparison_get(comparison_id=UUID(object_id))
        if request.method == "POST":
            self._vote(request, comparison)
            return HttpResponseRedirect(request.path)
        pairing = selectors.pairing_next(comparison=comparison, user=request.user)
        context = {
            **self.admin_site.each_context(request),
            "title": "Judge replies",
            "opts": self.opts,
            "pairing": pairing,
            "replies": _shown(pairing, request.user) if pairing else (),
        }
        return TemplateResponse(request, "admin/judge_replies.html", context)

    def has_vote_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return request.user.has_perm("training.add_vote")

    def _vote(self, request: Any, comparison: Comparison) -> None:
        try:
            side, pairing_id = SIDES[request.POST.get("better")], int(request.POST.get("pairing"))
            verdict = MIRRORED[side] if _is_mirrored(pairing_id, request.user) else side
            services.vote_give(comparison=comparison, pairing_id=pairing_id, user=request.user, verdict=verdict)
        except (KeyError, TypeError, ValueError):
            self.message_user(request, "Choose one of the three buttons.", messages.ERROR)
        except APIException as error:
            self.message_user(request, str(error.detail), messages.ERROR)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return super().has_add_permission(request) and not selectors.settings_missing(*services.CONTESTANT)

    def has_change_permission(self, request: HttpRequest, obj: Comparison | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Comparison, form: Any, change: bool) -> None:
        """The form has made it."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        missing = {
            "contestant": selectors.settings_missing(*services.CONTESTANT),
            "judge": selectors.settings_missing(*services.JUDGE),
        }
        return super().changelist_view(request, {**(extra_context or {}), "missing": missing})


def _is_mirrored(pairing_id: int, user: User) -> bool:
    """Whether theirs is on the left: by chance, but always the same for one person."""
    return bool(sha256(f"{pairing_id} {user.pk}".encode()).digest()[0] & 1)


def _shown(pairing: Pairing, user: User) -> tuple[str, str]:
    """The reply on the left and the one on the right."""
    mirrored = _is_mirrored(pairing.id, user)
    return (pairing.theirs, pairing.ours) if mirrored else (pairing.ours, pairing.theirs)


def _win_rate(comparison: Comparison, who: str) -> str:
    result = selectors.comparison_results(comparison)[who]
    if result is None:
        return "-"
    return "{win_rate:.0%} [{low:.0%}, {high:.0%}]: {wins} won, {ties} tied, {losses} lost".format(**result)
