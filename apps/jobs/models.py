"""The job row: what a worker owes somebody."""

from django.conf import settings
from django.db import models
from django.db.models import Q

from apps.common.models import TimestampedModel


class State(models.TextChoices):
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    ERRORED = "errored", "Errored"
    CANCELLED = "cancelled", "Cancelled"


ACTIVE = (State.QUEUED, State.RUNNING)
TERMINAL = (State.SUCCEEDED, State.FAILED, State.ERRORED, State.CANCELLED)


class Job(TimestampedModel):
    """A piece of work that a worker owes somebody.

               claim                finish
    QUEUED ------------> RUNNING ------------> SUCCEEDED
      ^  \\                 | | \\-------------> FAILED     (expected: bad input, deadline)
      |   \\ cancel         | |  \\------------> ERRORED    (a bug, or the last attempt lost)
      |    \\---> CANCELLED<-/ |
      +---- lease expired ----+   (attempt + 1 at the next claim)

    Only `jobs.services` changes `state`. A worker owns a RUNNING job while it holds `lease_token`. A job is given up
    after `max_attempts` crashes; a lease that was merely lost, because its worker froze or could not reach Postgres,
    is counted apart.
    """

    kind = models.CharField(max_length=50)
    queue = models.CharField(max_length=30)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.CASCADE, related_name="+"
    )
    state = models.CharField(max_length=10, choices=State.choices, default=State.QUEUED)
    request = models.JSONField(help_text="What to do; written once, at creation.")
    result = models.JSONField(null=True, blank=True, help_text="What came of it; of a cancelled job, as far as it got.")
    error = models.JSONField(null=True, blank=True, help_text='{"code", "detail"} of a failed or errored job.')
    keep = models.BooleanField(default=True, help_text="Goes on when nobody reads its stream.")

    attempt = models.PositiveSmallIntegerField(default=0, help_text="How often it was claimed; fences stream writes.")
    crashes = models.PositiveSmallIntegerField(
        default=0, db_default=0, help_text="How often a worker's process, or its engine, died with it."
    )
    max_attempts = models.PositiveSmallIntegerField(help_text="Crashes after which it is given up.")
    lease_losses = models.PositiveSmallIntegerField(
        default=0, db_default=0, help_text="How often its worker fell silent, and it was taken from it."
    )
    worker = models.CharField(max_length=100, blank=True, help_text="Celery node name of the last claimant.")
    lease_token = models.UUIDField(
        null=True, blank=True, help_text="Fences the row: every write of a worker carries it."
    )
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    worker_died = models.BooleanField(
        default=False, db_default=False, help_text="The process that holds the lease is known to have ended."
    )
    resend_at = models.DateTimeField(
        help_text="When the sweeper sends the message again if nobody has claimed the job."
    )

    deadline_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True, help_text="First claim.")
    finished_at = models.DateTimeField(null=True, blank=True)

    idempotency_key = models.CharField(max_length=200, null=True, blank=True)  # noqa: DJ001 - NULL is outside the constraint
    fingerprint = models.CharField(max_length=64, blank=True, help_text="SHA-256 of the request that used the key.")

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["queue", "created_at"], condition=Q(state="queued"), name="job_waiting"),
            models.Index(fields=["resend_at"], condition=Q(state="queued"), name="job_resend"),
            models.Index(fields=["lease_expires_at"], condition=Q(state="running"), name="job_lease"),
            models.Index(fields=["user", "-created_at", "-id"], name="job_of_user"),
            models.Index(
                fields=["user", "queue", "started_at"], condition=Q(started_at__isnull=False), name="job_begun"
            ),
            models.Index(fields=["finished_at"], name="job_finished"),
            models.Index(fields=["-created_at", "-id"], name="job_newest"),
            models.Index(fields=["state", "kind"], name="job_counts"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "idempotency_key"], condition=Q(idempotency_key__isnull=False), name="job_idempotency"
            ),
            models.CheckConstraint(
                condition=Q(state="running", lease_token__isnull=False) | (~Q(state="running") & Q(lease_token=None)),
                name="job_lease_iff_running",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    @property
    def queue_position(self) -> int | None:
        """1 is next; None once it is not waiting, and where no selector has counted."""
        return getattr(self, "counted_position", None)

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL
