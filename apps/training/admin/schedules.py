from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django_celery_beat.models import CrontabSchedule
from unfold.admin import ModelAdmin, TabularInline

from apps.common.serializers import texts_of
from apps.jobs.selectors import crontab_errors
from apps.training.admin.data import ReadOnly
from apps.training.models import Schedule, Slot
from apps.training.serializers.runs import RecipeSerializer
from apps.training.services import schedules as services

SLOTS_SHOWN = 20


class SlotInline(ReadOnly, TabularInline):
    """When it was due of late, and what came of it."""

    model = Slot
    fields = readonly_fields = ("due_at", "run", "outcome")
    hide_title = True
    verbose_name_plural = "Slots"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Slot]:
        return super().get_queryset(request).select_related("run")

    def get_formset(self, *args: Any, **kwargs: Any) -> Any:
        shown = super().get_formset(*args, **kwargs)

        class Latest(shown):  # type: ignore[misc, valid-type]
            def get_queryset(self) -> Any:
                return super().get_queryset()[:SLOTS_SHOWN]

        return Latest


class ScheduleForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean_crontab(self) -> CrontabSchedule:
        crontab = self.cleaned_data["crontab"]
        if errors := crontab_errors(crontab):
            raise ValidationError(list(errors.values()))
        return crontab

    def clean_recipe(self) -> Any:
        """As the trainer would have it, so that a night's run does not fail of a slip of the pen."""
        given = self.cleaned_data["recipe"]
        serializer = RecipeSerializer(data={} if given is None else given)
        if not serializer.is_valid():
            raise ValidationError(texts_of(serializer.errors))
        return serializer.validated_data


@admin.register(Schedule)
class ScheduleAdmin(ModelAdmin):
    form = ScheduleForm
    list_display = ("name", "enabled", "crontab", "task", "subject", "minimum_new", "suffix")
    fields = ("name", "enabled", "crontab", "task", "subject", "minimum_new", "suffix", "recipe")
    inlines = (SlotInline,)

    def save_model(self, request: HttpRequest, obj: Schedule, form: Any, change: bool) -> None:
        services.schedule_save(schedule=obj)

    def delete_model(self, request: HttpRequest, obj: Schedule) -> None:
        services.schedule_delete(schedule=obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> None:
        for schedule in queryset:
            services.schedule_delete(schedule=schedule)
