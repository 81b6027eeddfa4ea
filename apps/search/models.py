"""What was searched for, and the words that there are to be found."""

from django.conf import settings
from django.db import models
from django.utils import timezone

from apps.common.constants import Level, Subject


class Word(models.Model):
    """A word of published content. Rows are made anew, all at once, from what Postgres has indexed."""

    class Form(models.TextChoices):
        WRITTEN = "written", "As it is written"
        STEM = "stem", "As it is indexed"

    word = models.CharField(max_length=200)
    form = models.CharField(max_length=10, choices=Form.choices)
    documents = models.PositiveIntegerField(help_text="In how many items it is.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["form", "word"], name="word_of_form")]

    def __str__(self) -> str:
        return self.word


class Query(models.Model):
    """A search that somebody made; deleted after some months."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    text = models.CharField(max_length=400, help_text="In lower case, without needless spaces.")
    results = models.PositiveIntegerField()
    intent = models.CharField(max_length=40, blank=True, help_text="As it was understood, like subject and level.")
    subject = models.CharField(max_length=20, choices=Subject.choices, blank=True)
    level = models.CharField(max_length=20, choices=Level.choices, blank=True)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-at"]
        verbose_name_plural = "queries"
        indexes = [
            models.Index(
                fields=["text", "at"], name="query_begins", opclasses=["varchar_pattern_ops", "timestamptz_ops"]
            ),
            models.Index(fields=["at"], name="query_at"),
        ]

    def __str__(self) -> str:
        return f"Query {self.pk}"  # the admin's history keeps it, when the query is long gone
