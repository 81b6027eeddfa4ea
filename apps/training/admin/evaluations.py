from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.html import format_html_join
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import ChoicesDropdownFilter, RangeDateTimeFilter
from unfold.decorators import display

from apps.training.admin.data import ReadOnly
from apps.training.models import Evaluation, Gate, Measure

WHO = {"candidate": "This adapter", "live": "Live", "base": "Base model"}
PASSED, HELD_BACK, UNDER_WAY = "Passed", "Held back", "No verdict"


@admin.register(Evaluation)
class EvaluationAdmin(ReadOnly, ModelAdmin):
    list_display = ("adapter", "task", "subject", "verdict", "progress", "user", "created_at")
    list_filter = (("task", ChoicesDropdownFilter), "passed", ("created_at", RangeDateTimeFilter))
    list_filter_submit = True
    list_select_related = ("adapter", "user", "job")
    search_fields = ("adapter__name",)
    show_full_result_count = False
    fields = ("adapter", "task", "subject", "limit", "verdict", "reasons", "side_by_side", "sources", "progress", "job")
    readonly_fields = ("verdict", "reasons", "side_by_side", "sources", "progress")

    @display(
        description="Verdict",
        ordering="passed",
        label={PASSED: "success", HELD_BACK: "danger", UNDER_WAY: "default"},
    )
    def verdict(self, evaluation: Evaluation) -> str:
        return {True: PASSED, False: HELD_BACK, None: UNDER_WAY}[evaluation.passed]

    @admin.display(description="Why")
    def reasons(self, evaluation: Evaluation) -> str:
        return format_html_join("", "<p>{}</p>", ((failure,) for failure in evaluation.failures)) or "-"

    @admin.display(description="Side by side")
    def side_by_side(self, evaluation: Evaluation) -> str:
        if not evaluation.report:
            return "-"
        return render_to_string("admin/table.html", {"table": measure_table(evaluation.report)})

    @admin.display(description="Judged by")
    def sources(self, evaluation: Evaluation) -> str:
        sets = (evaluation.report or {}).get("sets", {}).items()
        lines = ((f"{name}: {s['items']} items of {s['kind']} {s['version']}",) for name, s in sets)
        return format_html_join("", "<p>{}</p>", lines) or "-"

    @admin.display(description="Replies")
    def progress(self, evaluation: Evaluation) -> str:
        state = f", {evaluation.job.state}" if evaluation.job and evaluation.passed is None else ""
        return f"{evaluation.replies_done} of {evaluation.replies_total or '?'}{state}"


def measure_table(report: dict[str, Any]) -> dict[str, Any]:
    """Measures in rows; of each who replied, and of the differences, the estimate with its 95% interval."""

    def cells(name: str, measure: dict[str, Any]) -> Iterator[str]:
        yield f"{Measure(name).label} ({measure['better']} is better)"
        yield str(measure["candidate"]["n"])
        for key in (*WHO, "difference_to_live", "difference_to_base"):
            figures = measure[key]
            yield "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**figures) if figures else "-"

    headers = ["Measure", "Items", *WHO.values(), "Difference to live", "Difference to base"]
    return {"headers": headers, "rows": [list(cells(*measure)) for measure in report["measures"].items()]}


@admin.register(Gate)
class GateAdmin(ModelAdmin):
    list_display = ("task", "measure", "kind", "value")
    list_display_links = ("measure",)
    list_editable = ("value",)
    list_filter = (("task", ChoicesDropdownFilter), ("kind", ChoicesDropdownFilter))
    list_filter_submit = True

    def get_readonly_fields(self, request: HttpRequest, obj: Gate | None = None) -> tuple[str, ...]:
        """What is judged stays; another measure is another gate."""
        return ("task", "measure", "kind") if obj else ()
