"""A training run: what was asked for, how far it is, and what came of it."""

from typing import Any

from django.conf import settings
from django.db import models

from apps.common.constants import Subject, Task
from apps.common.models import TimestampedModel
from apps.inference.models import Adapter
from apps.jobs.models import Job
from apps.training.models.data import DataSetVersion


class RunState(models.TextChoices):
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    PAUSED = "paused", "Paused"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"


class Run(TimestampedModel):
    """A model that learns from a data set version.

               begin               end
    QUEUED ----------> RUNNING ----------> SUCCEEDED  (its adapter serves)
      ^ |  \\            | |  \\-----------> FAILED     (the error says what to change, or that it is a bug)
      | |   \\ cancel    | |   cancel             |
      | |    \\--------> CANCELLED <----- PAUSED   |
      | |      pause    | |                ^     |
      | \\--------------+-+----------------/      |
      \\--------------- resume ------------+------/

    Its work is a job of kind `train`, a new one each time it is resumed: a killed worker's is taken over by the next,
    which goes on from the last checkpoint. Only `services.runs` changes `state`.
    """

    ACTIVE = (RunState.QUEUED, RunState.RUNNING)

    version = models.ForeignKey(DataSetVersion, on_delete=models.PROTECT, related_name="runs")
    recipe = models.JSONField(help_text="Fields of `workers.training.recipe.Recipe`; what is not there is the default.")
    weights = models.JSONField(default=dict, blank=True, help_text="Of files, where they are drawn from by weight.")
    suffix = models.CharField(max_length=64, help_text="Of the adapter's name.")
    task = models.CharField(max_length=20, choices=Task.choices, blank=True, help_text="Empty: none in particular.")
    subject = models.CharField(max_length=20, choices=Subject.choices, blank=True, help_text="Empty: all.")
    metadata = models.JSONField(default=dict, blank=True, help_text="The client's own.")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    replaces = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="replaced_by",
        help_text="After an erasure.",
    )

    state = models.CharField(max_length=10, choices=RunState.choices, default=RunState.QUEUED)
    job = models.OneToOneField(Job, null=True, on_delete=models.SET_NULL, related_name="run")
    step = models.PositiveIntegerField(default=0, help_text="Steps done.")
    steps = models.PositiveIntegerField(null=True, blank=True, help_text="In all; known once it has begun.")
    error = models.JSONField(null=True, blank=True, help_text='{"code", "detail"} of a failed run.')
    result = models.JSONField(default=dict, blank=True, help_text="Of full tuning: where the model is.")
    adapter = models.ForeignKey(Adapter, null=True, blank=True, on_delete=models.SET_NULL, related_name="runs")
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["-created_at", "-id"], name="run_newest")]

    def __str__(self) -> str:
        return f"{self.suffix} {self.public_id}"

    @property
    def public_id(self) -> str:
        return f"ftjob-{self.id.hex}"

    @property
    def is_active(self) -> bool:
        return self.state in self.ACTIVE

    @property
    def method(self) -> str:
        """Of the recipe: sft, full, dpo or kto."""
        method: Any = self.recipe.get("method", "sft")
        return str(method)


class RunEvent(models.Model):
    """Something that a run has to say. A step's metrics are said once, by whoever took the step last."""

    class Level(models.TextChoices):
        INFO = "info", "Info"
        WARN = "warn", "Warning"
        ERROR = "error", "Error"

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="events")
    created_at = models.DateTimeField(auto_now_add=True)
    level = models.CharField(max_length=5, choices=Level.choices, default=Level.INFO)
    message = models.TextField()
    step = models.PositiveIntegerField(null=True, help_text="Whose metrics these are; empty for a message.")
    data = models.JSONField(default=dict)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["run", "-id"], name="event_of_run")]
        constraints = [models.UniqueConstraint(fields=["run", "step"], name="metrics_of_step")]

    def __str__(self) -> str:
        return self.message


class RunCheckpoint(TimestampedModel):
    """A state of a run that it can go on from, and that serves as an adapter."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="checkpoints")
    step = models.PositiveIntegerField()
    metrics = models.JSONField(default=dict)
    adapter = models.ForeignKey(Adapter, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        ordering = ["-step"]
        constraints = [models.UniqueConstraint(fields=["run", "step"], name="checkpoint_of_step")]

    def __str__(self) -> str:
        return f"{self.run} step {self.step}"
