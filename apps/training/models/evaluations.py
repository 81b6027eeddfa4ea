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
    replies_done = models.PositiveIntegerField(default=0)
    replies_total = models.PositiveIntegerField(default=0)
    report = models.JSONField(null=True, blank=True, help_text="Measures side by side; empty until it has ended.")
    passed = models.BooleanField(null=True, blank=True, help_text="Whether the gate lets it through; empty until then.")
    failures = models.JSONField(default=list, help_text="Why not: a text for each measure that held it back.")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["adapter", "task", "-created_at"], name="evaluation_of_adapter"),
            models.Index(fields=["-created_at", "-id"], name="evaluation_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.task}: {self.adapter}"


class Measure(models.TextChoices):
    """Those of `workers.training.measures`, which a test holds to be the same."""

    NLL = "nll", "Negative log-likelihood per token"
    TURN_END = "turn_end", "Turns ended"
    EXACT_MATCH = "exact_match", "Right final answers"
    ARITHMETIC = "arithmetic", "Replies without a wrong calculation"
    ANSWER_LEAK = "answer_leak", "Hints that give the answer away"
    READABILITY = "readability", "Replies readable at the level"
    AUC = "auc", "Engagement, area under the curve"
    CALIBRATION_ERROR = "calibration_error", "Engagement, calibration error"
    VALIDITY = "validity", "Valid learning paths"
    INTENT = "intent", "Queries whose intent is found"


class Gate(models.Model):
    """What an adapter must do to go live for a task. Intervals decide: what may be worse by chance is held back."""

    class Kind(models.TextChoices):
        NOT_WORSE_THAN_LIVE = "not_worse_than_live", "Worse than the live one by this at most"
        BETTER_THAN_BASE = "better_than_base", "Better than the base model by more than this"
        BOUND = "bound", "As good as this"

    task = models.CharField(max_length=20, choices=Task.choices)
    measure = models.CharField(max_length=20, choices=Measure.choices)
    kind = models.CharField(max_length=20, choices=Kind.choices)
    value = models.FloatField(default=0, help_text="In the measure's own unit; rates are from 0 to 1.")

    class Meta:
        ordering = ["task", "measure", "kind"]
        constraints = [models.UniqueConstraint(fields=["task", "measure", "kind"], name="gate_of_measure")]

    def __str__(self) -> str:
        return f"{self.task}, {self.measure}: {self.kind} {self.value:g}"
