from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from unfold.admin import ModelAdmin

from apps.search import selectors
from apps.search.models import Query


@admin.register(Query)
class QueryAdmin(ModelAdmin):
    """What is searched for: above the list what most learners asked, and what they did not find."""

    list_display = ("text", "results", "intent", "subject", "level", "at")
    search_fields = ("text",)
    show_full_result_count = False
    list_before_template = "admin/queries.html"

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        shown = {"popular": _table(False), "not_found": _table(True)}
        return super().changelist_view(request, {**(extra_context or {}), **shown})

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def _table(without_results: bool) -> dict[str, Any]:
    found = selectors.popular_queries(without_results=without_results)
    rows = [[one["text"], one["learners"], one["times"]] for one in found]
    return {"headers": ["Query", "Learners", "Times"], "rows": rows}
