from typing import Any

from django.contrib import admin
from django.db.models import Count, Exists, IntegerField, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.template.defaultfilters import linebreaksbr
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import Truncator
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter, DropdownFilter, RangeDateTimeFilter
from unfold.decorators import display

from apps.tutor.models import Conversation, Feedback, Message

RATING_COLOURS = {Feedback.Rating.UP.label: "success", Feedback.Rating.DOWN.label: "danger"}


class ReadOnly:
    """What learners said stands as they said it; it goes when they delete it, or their account is erased."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class MessageDisplay:
    """Columns of a message that are not its own fields."""

    @display(description="Feedback", empty_value="-", label=RATING_COLOURS)
    def rating(self, message: Message) -> str | None:
        return Feedback.Rating(message.feedback.rating).label if hasattr(message, "feedback") else None

    @admin.display(description="Reason", empty_value="-")
    def reason(self, message: Message) -> str:
        return message.feedback.reason if hasattr(message, "feedback") else ""

    @admin.display(description="Content")
    def text(self, message: Message) -> str:
        return linebreaksbr(message.content)

    @admin.display(description="Job", empty_value="-")
    def job_link(self, message: Message) -> str | None:
        if message.job_id is None:
            return None
        url = reverse("admin:jobs_job_change", args=[message.job_id])
        return format_html('<a class="text-link" href="{}">{}</a>', url, str(message.job_id)[:8])


class MessageInline(ReadOnly, MessageDisplay, TabularInline):
    model = Message
    fields = readonly_fields = ("role", "text", "finish_reason", "rating", "reason", "job_link")
    per_page = 50
    hide_title = True

    def get_queryset(self, request: HttpRequest) -> QuerySet[Message]:
        return super().get_queryset(request).select_related("feedback")


class RatingFilter(DropdownFilter):
    title = "feedback"
    parameter_name = "rating"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return Feedback.Rating.choices

    def queryset(self, request: HttpRequest, queryset: QuerySet[Conversation]) -> QuerySet[Conversation]:
        if not self.value():
            return queryset
        return queryset.filter(
            Exists(Feedback.objects.filter(message__conversation=OuterRef("pk"), rating=self.value()))
        )


def _count(rows: QuerySet[Any], conversation: str) -> Coalesce:
    """How many of `rows` each conversation has; counted for the page that is shown, not for the table."""
    count = rows.filter(**{conversation: OuterRef("pk")}).order_by().values(conversation).annotate(n=Count("pk"))
    return Coalesce(Subquery(count.values("n"), output_field=IntegerField()), 0)


@admin.register(Conversation)
class ConversationAdmin(ReadOnly, ModelAdmin):
    list_display = ("__str__", "user", "subject", "level", "messages_count", "up_count", "down_count", "created_at")
    list_filter = (
        ("subject", ChoicesDropdownFilter),
        ("level", ChoicesDropdownFilter),
        RatingFilter,
        ("created_at", RangeDateTimeFilter),
    )
    list_filter_submit = True
    list_select_related = ("user",)
    search_fields = ("user__username", "title", "messages__content")
    search_help_text = "A user name, or words that were said."
    show_full_result_count = False
    fields = ("title", "user", "subject", "level", "created_at")
    inlines = (MessageInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Conversation]:
        ratings = Feedback.objects.filter
        return (
            super()
            .get_queryset(request)
            .annotate(
                messages_count=_count(Message.objects.all(), "conversation"),
                up_count=_count(ratings(rating=Feedback.Rating.UP), "message__conversation"),
                down_count=_count(ratings(rating=Feedback.Rating.DOWN), "message__conversation"),
            )
        )

    @admin.display(description="Messages")
    def messages_count(self, conversation: Any) -> int:
        return conversation.messages_count

    @admin.display(description="Thumbs up")
    def up_count(self, conversation: Any) -> int:
        return conversation.up_count

    @admin.display(description="Thumbs down")
    def down_count(self, conversation: Any) -> int:
        return conversation.down_count


@admin.register(Message)
class MessageAdmin(ReadOnly, MessageDisplay, ModelAdmin):
    list_display = ("excerpt", "role", "user", "rating", "finish_reason", "model", "adapter", "created_at")
    list_filter = (
        ("role", ChoicesDropdownFilter),
        ("feedback__rating", ChoicesDropdownFilter),
        ("conversation__subject", ChoicesDropdownFilter),
        ("conversation__level", ChoicesDropdownFilter),
        ("created_at", RangeDateTimeFilter),
    )
    list_filter_submit = True
    list_select_related = ("conversation__user", "feedback")
    search_fields = ("conversation__user__username", "content")
    search_help_text = "A user name, or words that were said."
    show_full_result_count = False
    ordering = ("-created_at", "-id")
    fields = (
        "conversation",
        "position",
        "role",
        "text",
        "finish_reason",
        "model",
        "adapter",
        "job_link",
        "rating",
        "reason",
        "created_at",
    )
    readonly_fields = ("text", "job_link", "rating", "reason")

    @admin.display(description="Message")
    def excerpt(self, message: Message) -> str:
        return Truncator(message.content).chars(80) or "(empty)"

    @admin.display(description="User", ordering="conversation__user__username")
    def user(self, message: Message) -> str:
        return message.conversation.user.username
