from uuid import uuid4

from django.db import models


class TimestampedModel(models.Model):
    """A row with an id that tells nothing, and the times of its first and last write."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True
