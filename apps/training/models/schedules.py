"""When models are trained without being asked."""

from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from apps.common.constants import Subject, Task
from apps.common.models import TimestampedModel
from apps.training.models.runs import Run


class Schedule(TimestampedModel):
    """A run that is started again and again, whenever there is enough that is new to learn."""

    name = models.CharField(max_length=100, unique=True)
    enabled = models.BooleanField(default=True)
    crontab = models.ForeignKey(CrontabSchedule, on_delete=models.PROTECT, help_text="When to look, in UTC.")
    task = models.CharField(max_length=20, choices=Task.choices, blank=True, help_text="Empty: all.")
    subject = models.CharField(max_length=20, choices=Subject.choices, blank=True, help_text="Empty: all.")
    recipe = models.JSONField(
        default=dict, blank=True, help_text='Such as {"method": "dpo", "max_steps": 200}; the rest is the default.'
    )
    suffix = models.CharField(max_length=40, validators=[RegexValidator(r"^[a-z0-9-]+$")], help_text="Of the adapter.")
    minimum_new = models.PositiveIntegerField(
        default=100, validators=[MinValueValidator(1)], help_text="Examples since the last run; with fewer it waits."
    )
    beat = models.OneToOneField(
        PeriodicTask, null=True, editable=False, on_delete=models.SET_NULL, related_name="training_schedule"
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Slot(TimestampedModel):
    """One time at which a schedule was due, and what came of it. Beats that send it twice find it there."""

    schedule = models.ForeignKey(Schedule, on_delete=models.CASCADE, related_name="slots")
    due_at = models.DateTimeField()
    run = models.ForeignKey(Run, null=True, blank=True, on_delete=models.SET_NULL, related_name="slots")
    outcome = models.CharField(max_length=300, blank=True, help_text="Why there was nothing to do, else empty.")

    class Meta:
        ordering = ["-due_at"]
        constraints = [models.UniqueConstraint(fields=["schedule", "due_at"], name="slot_once")]

    def __str__(self) -> str:
        return f"{self.schedule} {self.due_at:%Y-%m-%d %H:%M}"
