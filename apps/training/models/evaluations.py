from django.conf import settings
from django.db import models

from apps.common.constants import Subject, Task
from apps.common.models import TimestampedModel
from apps.inference.models import Adapter
from apps.jobs.models import Job


class Evaluation(TimestampedModel):
    """What an adapter, the live one and the base model do on the evaluation sets of a task, and the gate's verdict."""

    adapter = models.ForeignKey(Adapter, on_delete=models.CASCADE, related_name="evaluations")
    task = models.CharField(max_length=20, choices=Task.choices)
    subject = models.CharField(max_length=20, choices=Subject.choices, blank=True, help_text="Empty: all.")
    limit = models.PositiveIntegerField(null=True, blank=True, help_text="Items of each set; empty: all.")
    job = models.OneToOneField(Job, null=True, blank=True, on_delete=models.SET_NULL, related_name="evaluation")
    report = models.JSONField(null=True, blank=True, help_text="Measures side by side; empty until it has ended.")
    passed = models.BooleanField(null=True, blank=True, help_text="Whether the gate lets it through; empty until then.")
    failures = models.JSONField(default=list, help_text="Why not: a text for each measure that held it back.")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["adapter", "task", "-created_at"], name="evaluation_of_adapter")]

    def __str__(self) -> str:
        return f"{self.task}: {self.adapter}"
