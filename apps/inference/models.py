"""What may answer beside the base model."""

from django.core.validators import RegexValidator
from django.db import models

from apps.common.constants import Subject, Task
from apps.common.models import TimestampedModel

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
