import json
from collections import defaultdict
from itertools import islice
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminTextInputWidget

from apps.feed import selectors, services
from apps.feed.entries import PARTS, Entry
from apps.feed.mix import mixed
from apps.feed.models import Event, Ranker, Ranking, Reader, Weights
from apps.users.models import User

SHOWN = 20  # entries of a feed
COLOURS = {
    Event.Type.IMPRESSION: "#94a3b8",
    Event.Type.CLICK: "#3b82f6",
    Event.Type.DWELL: "#06b6d4",
    Event.Type.COMPLETE: "#22c55e",
    Event.Type.LIKE: "#eab308",
    Event.Type.SAVE: "#a855f7",
    Event.Type.HIDE: "#ef4444",
}
CHART = json.dumps(
    {"animation": False, "maintainAspectRatio": False, "scales": {"x": {"stacked": True}, "y": {"stacked": True}}}
)


class ReadOnly(ModelAdmin):
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Reader)
class ReaderAdmin(ReadOnly):
    """A learner's feed as they see it, with what speaks for each item."""

    list_display = ("user", "educational_share", "events_at", "scored_until", "number")
    list_select_related = ("user",)
    search_fields = ("user__username", "user__email")
    ordering = ("-events_at",)
    show_full_result_count = False
    list_before_template = "admin/events.html"
    change_form_before_template = "admin/feed.html"

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        shown = {"events_chart": _hours(), "chart_options": CHART}
        return super().changelist_view(request, {**(extra_context or {}), **shown})

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        reader = self.get_object(request, object_id) if object_id else None
        shown = {"table": _feed(reader.user)} if reader else {}
        return super().changeform_view(request, object_id, form_url, {**(extra_context or {}), **shown})


class WeightsForm(forms.ModelForm):  # type: ignore[type-arg]
    """With a learner's name it is a preview: the page shows what would become of their feed, and nothing is saved."""

    preview_for = forms.CharField(
        required=False,
        widget=UnfoldAdminTextInputWidget,
        help_text="A learner's user name: shows their feed as it is and as it would be, and saves nothing.",
    )
    preview: dict[str, Any] | None = None

    class Meta:
        model = Weights
        fields = (*PARTS, "same_subject", "same_author")

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        name = cleaned.get("preview_for")
        if not name or self.errors:
            return cleaned
        user = User.objects.filter(username=name).first()
        if user is None:
            raise ValidationError({"preview_for": f"There is no user {name!r}."})
        self.preview = _previewed(user, {field: cleaned[field] for field in self.Meta.fields})
        raise ValidationError({"preview_for": "This is a preview, and nothing is saved: to save, empty this field."})


@admin.register(Weights)
class WeightsAdmin(ModelAdmin):
    """The newest are in force; to change them, add others."""

    form = WeightsForm
    list_display = ("created_at", "user", *PARTS)
    list_select_related = ("user",)
    change_form_before_template = "admin/weights_preview.html"

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """A preview shows a learner's feed: it is for those who may see that."""
        form = super().get_form(request, obj, change, **kwargs)
        return form if request.user.has_perm("feed.view_reader") else type("Form", (form,), {"preview_for": None})

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {**selectors.weights_get(), **super().get_changeform_initial_data(request)}

    def save_model(self, request: HttpRequest, obj: Weights, form: Any, change: bool) -> None:
        obj.user = request.user  # type: ignore[assignment]  # who is in the admin is logged in
        super().save_model(request, obj, form, change)


@admin.register(Ranker)
class RankerAdmin(ReadOnly):
    list_display = ("created_at", "__str__", "live", "events", "verdict")
    fields = ("digest", "live", "events", "verdict", "figures", "created_at")
    actions = ("make_live",)

    def has_promote_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("feed.change_ranker")

    @admin.action(description="Make live", permissions=["promote"])
    def make_live(self, request: HttpRequest, queryset: QuerySet[Ranker]) -> None:
        ranker, *others = queryset
        if others:
            self.message_user(request, "Choose one.", messages.ERROR)
            return
        services.ranker_promote(ranker=ranker)
        self.message_user(request, f"{ranker} is live: who did something lately is scored anew.", messages.SUCCESS)


def _hours() -> str:
    """Events of each hour by type, as Chart.js takes them."""
    counts: dict[str, dict[Any, int]] = defaultdict(dict)
    hours = []
    for hour, kind, count in selectors.event_hours():
        counts[kind][hour] = count
        if hour not in hours:
            hours.append(hour)
    bars = [
        {"label": kind.label, "data": [counts[kind].get(hour, 0) for hour in hours], "backgroundColor": colour}
        for kind, colour in COLOURS.items()
    ]
    return json.dumps({"labels": [f"{timezone.localtime(hour):%d. %H:%M}" for hour in hours], "datasets": bars})


def _feed(user: User) -> dict[str, Any]:
    """What the learner's feed begins with. Unlike `services.feed_page`, it makes no ranking theirs: staff only look."""
    reader, ranking, entries = _ranked(user)
    ended = selectors.ended_since(reader=reader, ranking=ranking) if ranking else set()
    state = selectors.ranking_state(reader=reader, ranking=ranking) if ranking else "cold"
    weights = selectors.weights_get()
    order = (entry for entry in mixed(entries, weights, reader.educational_share) if entry.item not in ended)
    shown = list(islice(order, SHOWN))
    cards = selectors.cards(ids=[entry.item for entry in shown])
    rows = []
    for place, entry in enumerate((entry for entry in shown if entry.item in cards), 1):
        card = cards[entry.item]
        parts = [f"{name} {value:+.2f}" for name, value in entry.contributions(weights).items() if value]
        said = " ".join(reason["text"] for reason in entry.said)
        rows.append([place, card["title"], card["subject"], f"{entry.score(weights):.2f}", ", ".join(parts), said])
    return {"headers": ["", "Item", "Subject", "Score", f"Parts ({state})", "Reasons"], "rows": rows}


def _ranked(user: User) -> tuple[Reader, Ranking | None, list[Entry]]:
    """The learner's last ranking and its entries; those that are known without one where there is none."""
    reader = selectors.reader_get(user=user)
    ranking = selectors.ranking_get(user=user, number=reader.number)
    return reader, ranking, selectors.entries_of(ranking) if ranking else services.ranking_cold(user=user)


def _previewed(user: User, weights: dict[str, float]) -> dict[str, Any]:
    """The titles of a learner's feed, with the weights in force and with these."""
    reader, _, entries = _ranked(user)
    orders = [
        list(islice(mixed(entries, of, reader.educational_share), SHOWN)) for of in (selectors.weights_get(), weights)
    ]
    cards = selectors.cards(ids=list({entry.item for order in orders for entry in order}))
    titles = [[cards[entry.item]["title"] if entry.item in cards else "" for entry in order] for order in orders]
    rows = [[place, *pair] for place, pair in enumerate(zip(*titles, strict=True), 1)]
    return {"headers": ["", "As it is", "As it would be"], "rows": rows}
