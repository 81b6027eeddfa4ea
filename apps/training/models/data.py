"""What models learn from: examples, their reviews, uploaded files, and the fixed sets that a training run takes."""

from typing import Any

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import Q

from apps.common.constants import Level, Subject, Task
from apps.common.models import TimestampedModel
from apps.training.formats import Format, Marks, Method


class State(models.TextChoices):
    PENDING = "pending", "Waiting for review"
    APPROVED = "approved", "Approved"
    REJECTED = "rejected", "Rejected"


class File(TimestampedModel):
    """An uploaded file of examples, as OpenAI's API has it. The same bytes are the same file, and what was said last of
    its task and its subject holds for it and its examples."""

    filename = models.CharField(max_length=255)
    digest = models.CharField(max_length=64, unique=True, help_text="SHA-256 of the bytes.")
    size = models.PositiveBigIntegerField(help_text="In bytes.")
    format = models.CharField(max_length=20, choices=Format.choices)
    task = models.CharField(max_length=20, choices=Task.choices, default=Task.TUTORING)
    subject = models.CharField(max_length=20, choices=Subject.choices, default=Subject.GENERAL)
    statistics = models.JSONField(help_text="Lines, and how many of them are examples or duplicates.")
    content = models.FileField(max_length=200)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["-created_at", "-id"], name="file_newest")]

    def __str__(self) -> str:
        return self.filename

    @property
    def public_id(self) -> str:
        return f"file-{self.id.hex}"


class Example(TimestampedModel):
    """One thing to learn. What is trained on is `content`, in which personal data is masked.

    PENDING --approve, edit--> APPROVED        a reviewer may decide anew at any time
            --reject---------> REJECTED        so may an evaluation set that it overlaps

    Imported examples are approved by whoever uploads them. `content` never changes once a data set version has it.
    """

    task = models.CharField(max_length=20, choices=Task.choices)
    subject = models.CharField(max_length=20, choices=Subject.choices, default=Subject.GENERAL)
    format = models.CharField(max_length=20, choices=Format.choices)
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    source = models.CharField(max_length=20, help_text='Where it was observed, such as "tutor", or "file".')
    source_id = models.UUIDField(null=True, blank=True, help_text="The observed row, such as the tutor's answer.")
    learner = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.CASCADE, related_name="+"
    )
    consented_at = models.DateTimeField(null=True, blank=True, help_text="The learner's consent that it rests on.")
    files = models.ManyToManyField(File, blank=True, related_name="examples")

    content = models.JSONField()
    original = models.JSONField(null=True, blank=True, help_text="As observed, where masking or an edit changed it.")
    note = models.CharField(max_length=300, blank=True, help_text="Why it was rejected, if no reviewer did it.")
    hash = models.CharField(max_length=64, unique=True, help_text="SHA-256 of format and content.")
    problem_hash = models.CharField(max_length=64, help_text="Of the normalised problem: decides the split.")
    bands = ArrayField(models.BigIntegerField(), help_text="Near duplicates share one (MinHash).")

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="example_newest"),
            models.Index(fields=["state", "task", "subject"], name="example_counts"),
            models.Index(fields=["learner"], condition=Q(learner__isnull=False), name="example_of_learner"),
            GinIndex(fields=["bands"], name="example_bands"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["source", "source_id"], name="example_of_source"),
            models.CheckConstraint(
                condition=Q(learner=None, consented_at=None) | Q(learner__isnull=False, consented_at__isnull=False),
                name="example_of_learner_has_consent",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.format} {self.hash[:12]}"


class Review(TimestampedModel):
    """What one reviewer last decided on an example."""

    class Decision(models.TextChoices):
        APPROVE = "approve", "Approved"
        EDIT = "edit", "Edited and approved"
        REJECT = "reject", "Rejected"

    example = models.ForeignKey(Example, on_delete=models.CASCADE, related_name="reviews")
    reviewer = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    decision = models.CharField(max_length=10, choices=Decision.choices)
    note = models.CharField(max_length=1000, blank=True)

    class Meta:
        ordering = ["-updated_at", "-id"]
        constraints = [models.UniqueConstraint(fields=["example", "reviewer"], name="review_by_reviewer")]

    def __str__(self) -> str:
        return self.decision


class Collection(models.Model):
    """How far a source of observations has been collected."""

    source = models.CharField(max_length=20, primary_key=True)
    until = models.DateTimeField()

    def __str__(self) -> str:
        return self.source


class Immutable(Exception):
    """A data set version or an evaluation set is written once."""


class DataSetVersion(TimestampedModel):
    """A fixed set of examples, by their hashes, split so that no problem is in both parts. Written once.

    Only `erased_at` comes later: when an example of it was first deleted. From then on nothing is trained on it.
    """

    method = models.CharField(max_length=20, choices=Method.choices)
    task = models.CharField(max_length=20, choices=Task.choices, blank=True, help_text="Empty: all.")
    subject = models.CharField(max_length=20, choices=Subject.choices, blank=True, help_text="Empty: all.")
    files = ArrayField(models.UUIDField(), default=list, help_text="Where only the examples of these were taken.")
    validation_files = ArrayField(models.UUIDField(), default=list)
    validation_share = models.FloatField(help_text="Of the problems, where no validation file was given.")
    statistics = models.JSONField()
    digest = models.CharField(max_length=64, help_text="SHA-256 of method, parts and hashes.")
    erased_at = models.DateTimeField(null=True, blank=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name = "data set version"
        indexes = [models.Index(fields=["-created_at", "-id"], name="version_newest")]
        constraints = [
            models.UniqueConstraint(fields=["digest"], condition=Q(erased_at=None), name="version_unchanged_data")
        ]
        permissions = [("train", "Can begin, pause, resume and cancel runs")]

    def __str__(self) -> str:
        return f"{self.method} {self.digest[:12]}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise Immutable(f"data set version {self.digest[:12]} cannot be changed")
        super().save(*args, **kwargs)


class Split(models.TextChoices):
    TRAIN = "train", "Training"
    VALIDATION = "validation", "Validation"


class Member(models.Model):
    """An example's place in a data set version. It outlives the example, of which it tells nothing."""

    version = models.ForeignKey(DataSetVersion, on_delete=models.CASCADE, related_name="members")
    hash = models.CharField(max_length=64, db_index=True)
    split = models.CharField(max_length=10, choices=Split.choices)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "hash"], name="member_of_version")]

    def __str__(self) -> str:
        return f"{self.split} {self.hash[:12]}"


class EvaluationSet(TimestampedModel):
    """Problems on which models are judged, and which therefore none may learn from. Written once."""

    name = models.CharField(max_length=100)
    version = models.PositiveIntegerField()
    task = models.CharField(max_length=20, choices=Task.choices)
    digest = models.CharField(max_length=64, unique=True, help_text="SHA-256 of the items' hashes.")

    class Meta:
        ordering = ["name", "-version"]
        constraints = [models.UniqueConstraint(fields=["name", "version"], name="evaluation_set_version")]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise Immutable(f"evaluation set {self} cannot be changed")
        super().save(*args, **kwargs)


class EvaluationItem(models.Model):
    """A problem of an evaluation set, in one of the formats of examples."""

    evaluation_set = models.ForeignKey(EvaluationSet, on_delete=models.CASCADE, related_name="items")
    position = models.PositiveIntegerField()
    format = models.CharField(max_length=20, choices=Format.choices)
    content = models.JSONField()
    answer = models.TextField(blank=True, help_text="The final answer, where there is one.")
    hint = models.BooleanField(default=False, help_text="A hint is asked for: the answer must not be given away.")
    level = models.CharField(max_length=20, choices=Level.choices, blank=True, help_text="Whom the reply is for.")
    problem = models.TextField()
    bands = ArrayField(models.BigIntegerField())

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["evaluation_set", "position"], name="item_position")]
        indexes = [GinIndex(fields=["bands"], name="evaluation_item_bands")]

    def __str__(self) -> str:
        return self.problem[:60]

    @property
    def marks(self) -> Marks:
        return Marks(self.answer, self.hint, self.level)
