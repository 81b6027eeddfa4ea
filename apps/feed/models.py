"""What learners did with items, and what they are shown next."""

from uuid import uuid4

from django.conf import settings
from django.contrib.postgres.indexes import BrinIndex
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from apps.common.models import TimestampedModel
from apps.content.models import Item

SHARE = 0.8  # of a feed that teaches, where the learner says nothing


class Event(models.Model):
    """Something that a learner did with an item, or that it was shown. Rows are only added.

    The table is partitioned by month of `at` (see the first migration), so the key has to have it too.
    """

    class Type(models.TextChoices):
        IMPRESSION = "impression", "Shown"
        CLICK = "click", "Opened"
        DWELL = "dwell", "Stayed"
        COMPLETE = "complete", "Completed"
        LIKE = "like", "Liked"
        HIDE = "hide", "Hidden"
        SAVE = "save", "Saved"

    pk = models.CompositePrimaryKey("at", "id")
    id = models.UUIDField(default=uuid4)
    at = models.DateTimeField(default=timezone.now)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False)
    item = models.ForeignKey(Item, on_delete=models.CASCADE, related_name="+", db_index=False)
    type = models.CharField(max_length=10, choices=Type.choices)
    seconds = models.FloatField(null=True, help_text="Of a stay.")
    position = models.PositiveSmallIntegerField(null=True, help_text="Where it was shown; 0 is the first.")
    propensity = models.FloatField(null=True, help_text="How probable it was that it was shown at all.")

    class Meta:
        ordering = ["-at", "-id"]
        indexes = [
            models.Index(fields=["user", "-at"], name="event_of_user"),
            models.Index(fields=["item", "-at"], name="event_of_item"),
            BrinIndex(fields=["at"], name="event_time", autosummarize=True),  # rows come in the order of time
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.item_id}"


class EventKey(models.Model):
    """A client's own name for an event, by which a repeat is known: a partitioned table cannot say so."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    client_id = models.CharField(max_length=100)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "client_id"], name="event_key")]
        indexes = [models.Index(fields=["at"], name="event_key_age")]

    def __str__(self) -> str:
        return self.client_id


class Follow(models.Model):
    """A learner wants to see what an author makes."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    author = models.CharField(max_length=200)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "author"], name="follow_once")]

    def __str__(self) -> str:
        return self.author


class Reader(models.Model):
    """A learner as the feed knows them: what they want of it, and how far it has caught up with what they did."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, primary_key=True, on_delete=models.CASCADE, related_name="reader"
    )
    educational_share = models.FloatField(
        default=SHARE, validators=[MinValueValidator(0), MaxValueValidator(1)], help_text="Of the feed that teaches."
    )
    events_at = models.DateTimeField(null=True, help_text="Of the last event that says something of their interest.")
    requested_at = models.DateTimeField(null=True, help_text="When a worker was last asked to score for them.")
    scored_until = models.DateTimeField(null=True, help_text="Events before this are in the scores.")
    ranker = models.CharField(max_length=64, blank=True, help_text="sha256 of the ranker that scored.")
    profile = models.CharField(max_length=64, blank=True, help_text="sha256 of the profile that the list is for.")
    number = models.PositiveIntegerField(default=0, help_text="Of the newest list.")

    class Meta:
        indexes = [models.Index(fields=["events_at"], name="reader_events")]

    def __str__(self) -> str:
        return str(self.user_id)


class Ranking(models.Model):
    """Items for a learner, or, without one, for everybody: the best first, with what speaks for each (`Entry`).

    The last few are kept, and those that are paged through, so that pages go on as they began.
    """

    class Origin(models.TextChoices):
        SCORED = "scored", "Scored by a worker"
        COLD = "cold", "From the profile alone"
        GENERAL = "general", "For everybody"

    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="+")
    number = models.PositiveIntegerField()
    origin = models.CharField(max_length=10, choices=Origin.choices)
    entries = models.JSONField()
    made_at = models.DateTimeField(default=timezone.now)
    until = models.DateTimeField(help_text="Events before this are in it.")
    paged_at = models.DateTimeField(null=True, help_text="When pages of it were last asked for.")

    class Meta:
        ordering = ["-made_at"]
        constraints = [
            models.UniqueConstraint(fields=["user", "number"], nulls_distinct=False, name="ranking_number"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} {self.number}"


class Trend(models.Model):
    """How much learners take to an item now: what they did counts half after three days."""

    item = models.OneToOneField(Item, primary_key=True, on_delete=models.CASCADE, related_name="trend")
    score = models.FloatField(help_text="0 to 1: the share of what the first has.")
    impressions = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.item_id}: {self.score:.2f}"


class Foresight(models.Model):
    """How much a learner will take to the best items of a ranking, as the live adapter for engagement expects it."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, primary_key=True, on_delete=models.CASCADE, related_name="+")
    adapter = models.CharField(max_length=200, help_text="Its name@digest: what another foresaw does not count.")
    values = models.JSONField(help_text="0 to 1, by item.")
    made_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return str(self.user_id)


class Weights(TimestampedModel):
    """What counts how much in the order of feeds. The newest row is in force; a change is a new row."""

    engagement = models.FloatField(default=1.0, help_text="How probable it is that the learner takes to it.")
    interest = models.FloatField(
        default=0.6,
        help_text="It is of a subject or a tag that the learner named, or of a subject that they took to last.",
    )
    level = models.FloatField(default=0.4, help_text="It is of the learner's level.")
    language = models.FloatField(default=2.0, help_text="It is in the learner's language.")
    followed = models.FloatField(default=0.4, help_text="The learner follows the author.")
    next_topic = models.FloatField(default=0.4, help_text="It is of a topic that follows from what they mastered.")
    educational = models.FloatField(default=0.4, help_text="It teaches.")
    quality = models.FloatField(default=0.3, help_text="It is well made.")
    freshness = models.FloatField(default=0.1, help_text="It is new.")
    trend = models.FloatField(default=0.3, help_text="Others take to it now.")
    foresight = models.FloatField(default=0.5, help_text="The language model expects the learner to take to it.")
    same_subject = models.FloatField(default=0.12, help_text="Taken off for each of its subject among the last nine.")
    same_author = models.FloatField(default=0.1, help_text="Taken off for each of its author among the last nine.")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        ordering = ["-created_at"]
        verbose_name_plural = "weights"

    def __str__(self) -> str:
        return f"{self.created_at:%Y-%m-%d %H:%M}"


class Ranker(TimestampedModel):
    """A version of what foresees engagement, learned from events; at most one is live."""

    digest = models.CharField(max_length=64, blank=True)
    file = models.FileField(upload_to="rankers", blank=True)
    figures = models.JSONField(default=dict, help_text="Of held-out events, beside the live one's and popularity's.")
    events = models.PositiveBigIntegerField(default=0, help_text="From how many it was learned.")
    live = models.BooleanField(default=False)
    verdict = models.CharField(max_length=300, blank=True, help_text="Why it went live, or did not.")

    class Meta:
        ordering = ["-created_at"]
        constraints = [models.UniqueConstraint(fields=["live"], condition=Q(live=True), name="one_live_ranker")]

    def __str__(self) -> str:
        return self.digest[:12] or str(self.id)
