from django.conf import settings
from django.db import models

from apps.common.constants import Level, Subject
from apps.common.models import TimestampedModel
from apps.jobs.models import Job


class Conversation(TimestampedModel):
    """A dialogue between one learner and the tutor. At most one answer is under way at a time."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations")
    subject = models.CharField(max_length=20, choices=Subject.choices, default=Subject.GENERAL)
    level = models.CharField(max_length=20, choices=Level.choices, default=Level.BEGINNER)
    title = models.CharField(max_length=120, blank=True, help_text="Its first question, shortened.")

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["user", "-created_at", "-id"], name="conversation_of_user")]

    def __str__(self) -> str:
        return self.title or f"Conversation {self.id}"


class Message(TimestampedModel):
    """A turn. The tutor's turn is stored empty when its job is made, and filled when the job ends."""

    class Role(models.TextChoices):
        USER = "user", "Learner"
        ASSISTANT = "assistant", "Tutor"

    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages")
    position = models.PositiveIntegerField()
    role = models.CharField(max_length=10, choices=Role.choices)
    content = models.TextField(blank=True)
    job = models.OneToOneField(Job, null=True, blank=True, on_delete=models.SET_NULL, related_name="message")
    finish_reason = models.CharField(max_length=20, blank=True, help_text="stop, length, cancelled or failed.")
    model = models.CharField(max_length=100, blank=True)
    adapter = models.CharField(max_length=200, null=True, blank=True)  # noqa: DJ001 - null is the base model, as in the API

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["conversation", "position"], name="message_position")]

    def __str__(self) -> str:
        return f"{self.role}: {self.content[:60]}"


class Feedback(TimestampedModel):
    """What the learner thought of an answer; training data later."""

    class Rating(models.TextChoices):
        UP = "up", "Thumbs up"
        DOWN = "down", "Thumbs down"

    message = models.OneToOneField(Message, on_delete=models.CASCADE, related_name="feedback")
    rating = models.CharField(max_length=4, choices=Rating.choices)
    reason = models.CharField(max_length=1000, blank=True)

    def __str__(self) -> str:
        return self.rating
