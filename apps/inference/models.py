"""What may answer beside the base model, and what does."""

from pathlib import Path

from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from apps.common.constants import Subject, Task
from apps.common.models import TimestampedModel
from lyo import env

DIGEST = r"[0-9a-f]{16}"


class Adapter(TimestampedModel):
    """A LoRA adapter, whose PEFT folder is kept under its digest. Other weights have another name."""

    name = models.CharField(
        max_length=200,
        unique=True,
        validators=[RegexValidator(rf"[^@]+@{DIGEST}\Z")],
        help_text="ft:<base model>:<suffix>@<digest>, as clients name it.",
    )
    digest = models.CharField(
        max_length=16, unique=True, help_text="Of weights and settings: `workers.engine.lora.adapter_digest`."
    )
    base_model = models.CharField(max_length=200)
    base_digest = models.CharField(max_length=64, help_text="SHA-256 of the weights that it was trained on.")
    task = models.CharField(max_length=20, choices=Task.choices, blank=True, help_text="Empty: none in particular.")
    subject = models.CharField(max_length=20, choices=Subject.choices, blank=True, help_text="Empty: all.")
    dataset_version = models.CharField(max_length=64, blank=True, help_text="Digest of the data that it learnt from.")
    recipe = models.JSONField(default=dict, help_text="How it was trained; with the seed, as `meta.json` has it.")
    metrics = models.JSONField(default=dict, help_text="Of its training: step and losses.")
    licence = models.TextField(blank=True)
    size = models.PositiveBigIntegerField(default=0, help_text="Of its folder, in bytes.")
    erased_at = models.DateTimeField(
        null=True, blank=True, help_text="Since when examples that it learnt from are deleted."
    )

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["-created_at", "-id"], name="adapter_newest")]

    def __str__(self) -> str:
        return self.name

    @property
    def is_servable(self) -> bool:
        """Whether it may be named or promoted: its data are not erased, and it was made for the model that answers."""
        return self.erased_at is None and self.fits

    @property
    def fits(self) -> bool:
        """Whether it was made for the model that answers."""
        return self.base_model in served_names()


def served_names() -> set[str]:
    """What adapters of the model that answers may call it: a hub's id has no revision there, a folder only its name."""
    return {env.MODEL, env.MODEL.partition("@")[0], Path(env.MODEL).name}


class SettledModel(models.Model):
    """A model that the settings name, and since when. `migrate` registers those that are new to the database."""

    name = models.CharField(max_length=400, primary_key=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class Route(TimestampedModel):
    """Which adapter answers a task: a live one, and on trial a canary for a share of the users.

    A subject's own route goes before its task's, which has no subject and serves all that have none of their own.

                promote                        complete
    live A  ----------------> live A, canary B ---------> live B
            (with a share)          |
       ^----------------------------+  rollback: asked for, or by the sequential test

    Without a canary, promotion goes straight to live, and rollback to what was live before: never to the base model.
    Only `inference.services` writes it, each time with a `RouteChange`.
    """

    task = models.CharField(max_length=20, choices=Task.choices)
    subject = models.CharField(
        max_length=20, choices=Subject.choices, blank=True, help_text="Empty: all that have no route of their own."
    )
    live = models.ForeignKey(
        Adapter,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="live_routes",
        help_text="Empty: the base model; of a subject's route, the one that the task's route has.",
    )
    canary = models.ForeignKey(Adapter, null=True, blank=True, on_delete=models.PROTECT, related_name="canary_routes")
    canary_share = models.FloatField(default=0.0, help_text="Of the users, from 0 to 1: the canary answers them.")
    canary_started_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["task", "subject"]
        constraints = [
            models.UniqueConstraint(fields=["task", "subject"], name="route_of_task_and_subject"),
            models.CheckConstraint(
                condition=Q(canary=None, canary_share=0, canary_started_at=None)
                | Q(canary__isnull=False, canary_share__gt=0, canary_share__lte=1, canary_started_at__isnull=False),
                name="route_share_iff_canary",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.task}, {self.subject}" if self.subject else self.task


class RouteChange(models.Model):
    """What was done to a route, by whom and why. Rows are only added; their numbers are in the order of the changes."""

    class Action(models.TextChoices):
        PROMOTE = "promote", "Promoted"
        CANARY = "canary", "Canary started"
        COMPLETE = "complete", "Canary completed"
        ROLLBACK = "rollback", "Rolled back"
        AUTOMATIC_ROLLBACK = "automatic_rollback", "Rolled back automatically"

    route = models.ForeignKey(Route, on_delete=models.CASCADE, related_name="changes")
    action = models.CharField(max_length=20, choices=Action.choices)
    before = models.JSONField(help_text="Names of `live` and `canary`, and `canary_share`.")
    after = models.JSONField()
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    reason = models.TextField(blank=True)
    evaluation_id = models.UUIDField(null=True, blank=True, help_text="On which it was decided.")
    overridden = models.JSONField(default=list, help_text="What spoke against it, where it was done all the same.")
    test = models.JSONField(null=True, blank=True, help_text="The sequential test as it then was.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.route}: {self.get_action_display()}"


class Outcome(models.Model):
    """How an answer that a route gave turned out. It tells nothing of whose it was, and outlives their account.

    What has been counted stays as it is: see `apps.inference.sequential`.
    """

    job_id = models.UUIDField(primary_key=True)
    voter = models.CharField(
        max_length=64,
        blank=True,
        default="",
        help_text="Keyed hash of whose it was, who counts once; empty: not counted.",
    )
    task = models.CharField(max_length=20, choices=Task.choices)
    subject = models.CharField(max_length=20, choices=Subject.choices, blank=True)
    adapter = models.CharField(max_length=16, blank=True, help_text="Its digest; empty: the base model.")
    failed = models.BooleanField(help_text="By the fault of the model or the adapter.")
    thumb_up = models.BooleanField(null=True, blank=True, help_text="As it was first given.")
    asked_at = models.DateTimeField()
    recorded_at = models.DateTimeField(default=timezone.now)
    rated_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["task", "adapter", "asked_at"], name="outcome_of_arm")]

    def __str__(self) -> str:
        return f"{self.task} by {self.adapter or 'the base model'}"
