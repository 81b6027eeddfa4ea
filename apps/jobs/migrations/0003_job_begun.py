from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    """When a job of a user last began, for whose turn it is."""

    atomic = False

    dependencies = [
        ("jobs", "0002_crashes_and_lease_losses"),
    ]

    operations = [
        AddIndexConcurrently(
            model_name="job",
            index=models.Index(
                fields=["user", "queue", "started_at"], condition=Q(started_at__isnull=False), name="job_begun"
            ),
        ),
    ]
