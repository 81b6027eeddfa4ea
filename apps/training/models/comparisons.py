from django.conf import settings
from django.db import models

from apps.common.constants import Task
from apps.common.models import TimestampedModel
from apps.inference.models import Adapter
from apps.jobs.models import Job
from apps.training.models.data import EvaluationSet, Example


class Verdict(models.TextChoices):
    OURS = "ours", "Ours is better"
    THEIRS = "theirs", "Theirs is better"
    TIE = "tie", "Neither is better"


class Comparison(TimestampedModel):
    """Our replies beside those of an outside model to the same prompts, judged by a third model or by people."""

    class Judge(models.TextChoices):
        MODEL = "model", "A model"
        PEOPLE = "people", "People"

    task = models.CharField(max_length=20, choices=Task.choices)
    adapter = models.ForeignKey(
        Adapter, null=True, blank=True, on_delete=models.CASCADE, related_name="+", help_text="Empty: the base model."
    )
    opponent = models.CharField(max_length=200, help_text="The outside model, as its server names it.")
    judge = models.CharField(max_length=10, choices=Judge.choices)
    judge_model = models.CharField(max_length=200, blank=True, help_text="As its server names it.")
    evaluation_set = models.ForeignKey(
        EvaluationSet,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="Whose prompts are taken; empty: recent ones, masked, of learners who consented to training.",
    )
    job = models.OneToOneField(Job, null=True, blank=True, on_delete=models.SET_NULL, related_name="comparison")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["-created_at", "-id"], name="comparison_newest")]

    def __str__(self) -> str:
        return f"{self.adapter or 'base model'} and {self.opponent}"


class Pairing(models.Model):
    """Two replies to a prompt. `verdict` is the judging model's, if it gave the same in both orders; else a tie."""

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="pairings")
    position = models.PositiveIntegerField()
    messages = models.JSONField()
    example = models.ForeignKey(
        Example, null=True, blank=True, on_delete=models.CASCADE, related_name="+", help_text="Whose prompt it is."
    )
    ours = models.TextField(blank=True)
    theirs = models.TextField(blank=True)
    answered_at = models.DateTimeField(null=True, blank=True)
    verdict = models.CharField(
        max_length=10, choices=Verdict.choices, blank=True, help_text="Empty too where the judge could not be read."
    )

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["comparison", "position"], name="pairing_position")]

    def __str__(self) -> str:
        return f"{self.comparison_id} {self.position}"


class Vote(TimestampedModel):
    """What a person, who did not know whose reply was which, said of a pairing."""

    pairing = models.ForeignKey(Pairing, on_delete=models.CASCADE, related_name="votes")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    verdict = models.CharField(max_length=10, choices=Verdict.choices)

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [models.UniqueConstraint(fields=["pairing", "user"], name="vote_of_person")]

    def __str__(self) -> str:
        return self.verdict
