import json
import re
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import mark_safe
from django.utils.text import Truncator
from rest_framework.exceptions import APIException
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter, DropdownFilter, RangeDateTimeFilter
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminTextareaWidget

from apps.common.constants import Subject, Task
from apps.training.formats import Invalid, parts_of, validate
from apps.training.models import DataSetVersion, EvaluationItem, EvaluationSet, Example, File, Review, State
from apps.training.selectors import data as selectors
from apps.training.services import data as services

STATE_COLOURS = {State.PENDING.label: "info", State.APPROVED.label: "success", State.REJECTED.label: "danger"}
BARS = {State.APPROVED: "bg-green-500", State.PENDING: "bg-blue-500", State.REJECTED: "bg-red-500"}
PLACEHOLDER = re.compile(r"&lt;[A-Z_]+&gt;")


class ReadOnly:
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReviewInline(ReadOnly, TabularInline):
    model = Review
    fields = readonly_fields = ("reviewer", "decision", "note", "updated_at")
    hide_title = True

    def get_queryset(self, request: HttpRequest) -> QuerySet[Review]:
        return super().get_queryset(request).select_related("reviewer")


class ReviewedFilter(DropdownFilter):
    title = "reviews"
    parameter_name = "reviews"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("mine", "Decided by me"), ("others", "Decided by others, not by me"), ("none", "By nobody")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Example]) -> QuerySet[Example]:
        mine = Review.objects.filter(reviewer=request.user.pk).values("example")
        match self.value():
            case "mine":
                return queryset.filter(id__in=mine)
            case "others":
                return queryset.filter(id__in=Review.objects.values("example")).exclude(id__in=mine)
            case "none":
                return queryset.filter(reviews=None)
        return queryset


class MaskedFilter(DropdownFilter):
    title = "masking"
    parameter_name = "masked"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Masked or edited"), ("no", "As observed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Example]) -> QuerySet[Example]:
        return queryset.filter(original__isnull=self.value() == "no") if self.value() else queryset


class ExampleForm(forms.ModelForm):  # type: ignore[type-arg]
    """Its only field is what models will see; saved as another, it is an edit."""

    class Meta:
        model = Example
        fields = ("content",)
        widgets = {"content": UnfoldAdminTextareaWidget(attrs={"rows": 16})}

    def clean_content(self) -> Any:
        try:
            return validate(self.cleaned_data["content"])[1]
        except Invalid as error:
            raise forms.ValidationError(str(error)) from error


@admin.register(Example)
class ExampleAdmin(ModelAdmin):
    """The review queue. Every decision goes through `services.example_review`."""

    form = ExampleForm
    list_display = ("excerpt", "task", "subject", "format", "state_label", "source", "reviewed", "created_at")
    list_filter = (
        ("state", ChoicesDropdownFilter),
        ("task", ChoicesDropdownFilter),
        ("subject", ChoicesDropdownFilter),
        ("format", ChoicesDropdownFilter),
        ReviewedFilter,
        MaskedFilter,
        ("created_at", RangeDateTimeFilter),
    )
    list_filter_submit = True
    list_before_template = "admin/example_summary.html"
    search_fields = ("content",)
    search_help_text = "Words of an example."
    show_full_result_count = False
    actions = ("approve", "reject")
    actions_submit_line = ("approve_this", "reject_this")
    fieldsets = (
        (None, {"fields": ("state_label", "note", "side_by_side", "content")}),
        ("Origin", {"fields": ("task", "subject", "format", "source", "source_id", "consented_at", "hash")}),
    )
    readonly_fields = (
        "state_label",
        "note",
        "side_by_side",
        "task",
        "subject",
        "format",
        "source",
        "source_id",
        "consented_at",
        "hash",
    )
    inlines = (ReviewInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Example]:
        return super().get_queryset(request).defer("bands").annotate(reviews_count=Count("reviews"))

    @admin.display(description="Example")
    def excerpt(self, example: Example) -> str:
        return Truncator(parts_of(example.format, example.content).question).chars(80)

    @display(description="State", ordering="state", label=STATE_COLOURS)
    def state_label(self, example: Example) -> str:
        return State(example.state).label

    @admin.display(description="Reviews")
    def reviewed(self, example: Any) -> int:
        return example.reviews_count

    @admin.display(description="As observed, and as models see it")
    def side_by_side(self, example: Example) -> str:
        columns = (example.original or example.content, example.content)
        return format_html('<div class="grid gap-4 grid-cols-2">{}{}</div>', *map(_marked, columns))

    @admin.action(description="Approve", permissions=["change"])
    def approve(self, request: HttpRequest, examples: QuerySet[Example]) -> None:
        self._decide(request, list(examples), Review.Decision.APPROVE)

    @admin.action(description="Reject", permissions=["change"])
    def reject(self, request: HttpRequest, examples: QuerySet[Example]) -> None:
        self._decide(request, list(examples), Review.Decision.REJECT)

    @action(description="Approve", permissions=["change"])
    def approve_this(self, request: HttpRequest, example: Example) -> None:
        self._decide(request, [example], Review.Decision.APPROVE)

    @action(description="Reject", permissions=["change"])
    def reject_this(self, request: HttpRequest, example: Example) -> None:
        self._decide(request, [example], Review.Decision.REJECT)

    def _decide(self, request: Any, examples: list[Example], decision: str, **change: Any) -> None:
        done, refusals = 0, set()
        for example in examples:
            try:
                services.example_review(example=example, reviewer=request.user, decision=decision, **change)
                done += 1
            except APIException as error:
                refusals.add(str(error.detail))
        level = messages.SUCCESS if done else messages.ERROR
        label = Review.Decision(decision).label.lower()
        self.message_user(request, " ".join([f"{done} of {len(examples)} {label}.", *sorted(refusals)]), level)

    def save_model(self, request: HttpRequest, obj: Example, form: Any, change: bool) -> None:
        """A changed text is an edit, which approves; else it is the button that decides."""
        if "content" in form.changed_data:
            self._decide(request, [obj], Review.Decision.EDIT, content=form.cleaned_data["content"])
            return
        for button in self.get_actions_submit_line(request, obj.pk):
            if button.action_name in request.POST:
                button.method(request, obj)

    def response_change(self, request: HttpRequest, obj: Example) -> HttpResponse:
        """What was done has been said; the next in the queue is in the list."""
        return HttpResponseRedirect("../../")

    def log_change(self, request: HttpRequest, obj: Example, message: Any) -> None:
        """Reviews are the log."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        summary = {"counts": _count_bars(), "agreement": _agreement_table()}
        return super().changelist_view(request, {**(extra_context or {}), **summary})

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def delete_model(self, request: HttpRequest, obj: Example) -> None:
        services.examples_delete(Example.objects.filter(id=obj.id))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Example]) -> None:
        services.examples_delete(queryset)


def _marked(content: Any) -> str:
    """Readable JSON, with the placeholders marked."""
    text = conditional_escape(json.dumps(content, indent=2, ensure_ascii=False).replace("\\n", "\n"))
    marked = PLACEHOLDER.sub(lambda placeholder: f"<mark>{placeholder[0]}</mark>", text)
    return format_html('<pre style="white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>', mark_safe(marked))  # noqa: S308 - escaped above


def _count_bars() -> list[dict[str, Any]]:
    """A bar for each task and subject: its parts' shares, and how many examples it stands for."""
    bars = []
    for row in selectors.example_counts():
        total = sum(row[state] for state in State.values)
        bars.append(
            {
                "title": f"{Task(row['task']).label}, {Subject(row['subject']).label}",
                "description": ", ".join(f"{row[state]} {state}" for state in BARS),
                "items": [
                    {"title": state.label, "value": round(100 * row[state] / total, 1), "progress_class": colour}
                    for state, colour in BARS.items()
                ],
            }
        )
    return bars


def _agreement_table() -> dict[str, Any]:
    return {
        "headers": ["Reviewers", "Both decided", "Agreed", "Cohen's kappa"],
        "rows": [
            [
                " and ".join(pair.reviewers),
                pair.n,
                f"{pair.agreed / pair.n:.0%}",
                "-" if pair.kappa is None else f"{pair.kappa:.2f}",
            ]
            for pair in selectors.reviewer_agreement()
        ],
    }


@admin.register(File)
class FileAdmin(ModelAdmin):
    """Files come by /v1/files."""

    list_display = ("filename", "public_id", "format", "subject", "size", "examples_count", "user", "created_at")
    list_filter = (("format", ChoicesDropdownFilter), ("subject", ChoicesDropdownFilter))
    list_filter_submit = True
    list_select_related = ("user",)
    search_fields = ("filename", "digest")
    show_full_result_count = False
    fields = (
        "filename",
        "public_id",
        "format",
        "task",
        "subject",
        "size",
        "digest",
        "statistics",
        "user",
        "created_at",
    )
    readonly_fields = ("public_id",)

    @admin.display(description="Examples")
    def examples_count(self, file: File) -> int:
        return file.statistics["examples"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: File | None = None) -> bool:
        return False

    def delete_model(self, request: HttpRequest, obj: File) -> None:
        services.file_delete(file=obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[File]) -> None:
        for file in queryset:
            services.file_delete(file=file)


@admin.register(DataSetVersion)
class DataSetVersionAdmin(ReadOnly, ModelAdmin):
    list_display = ("__str__", "method", "task", "subject", "train", "validation", "erased_at", "user", "created_at")
    list_filter = (
        ("method", ChoicesDropdownFilter),
        ("task", ChoicesDropdownFilter),
        ("subject", ChoicesDropdownFilter),
        ("erased_at", RangeDateTimeFilter),
    )
    list_filter_submit = True
    list_select_related = ("user",)
    search_fields = ("digest",)
    show_full_result_count = False

    @admin.display(description="To train on")
    def train(self, version: DataSetVersion) -> int:
        return version.statistics["examples"].get("train", 0)

    @admin.display(description="To validate on")
    def validation(self, version: DataSetVersion) -> int:
        return version.statistics["examples"].get("validation", 0)


class EvaluationItemInline(ReadOnly, TabularInline):
    model = EvaluationItem
    fields = readonly_fields = ("position", "format", "problem")
    per_page = 50
    hide_title = True


@admin.register(EvaluationSet)
class EvaluationSetAdmin(ReadOnly, ModelAdmin):
    list_display = ("__str__", "task", "items_count", "digest", "created_at")
    list_filter = (("task", ChoicesDropdownFilter),)
    list_filter_submit = True
    search_fields = ("name", "digest")
    inlines = (EvaluationItemInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[EvaluationSet]:
        return super().get_queryset(request).annotate(items_count=Count("items"))

    @admin.display(description="Items")
    def items_count(self, evaluation_set: Any) -> int:
        return evaluation_set.items_count
