from typing import Any, ClassVar
from uuid import uuid4

from django.contrib.auth import models as auth_models
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone
from knox.models import AbstractAuthToken

from apps.common.constants import Level
from apps.common.models import TimestampedModel

language_validator = RegexValidator(
    r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*\Z", 'Must be a language tag such as "en" or "pt-BR".'
)


ADULT_AGE = 18


class Role(models.TextChoices):
    LEARNER = "learner", "Learner"
    TEACHER = "teacher", "Teacher"
    STAFF = "staff", "Staff"


def latest_adult_birth_year() -> int:
    """Whoever was born by its end is of age, whatever their birthday."""
    return timezone.now().year - ADULT_AGE - 1


class UserManager(auth_models.UserManager["User"]):
    @classmethod
    def normalize_email(cls, email: str | None) -> str:
        """Lower case throughout, so that the column's uniqueness does not depend on case."""
        return (email or "").lower()

    def create_superuser(
        self, username: str, email: str | None = None, password: str | None = None, **extra_fields: Any
    ) -> "User":
        return super().create_superuser(username, email, password, **{"role": Role.STAFF, **extra_fields})


class User(auth_models.AbstractUser):
    """A person with an account. Only staff change roles, in the admin; `is_staff` follows the role."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    email = models.EmailField("email address", unique=True)
    role = models.CharField(max_length=10, choices=Role.choices, default=Role.LEARNER)
    interests = ArrayField(models.CharField(max_length=50), size=20, default=list, blank=True)
    level = models.CharField(max_length=20, choices=Level.choices, default=Level.BEGINNER)
    language = models.CharField(max_length=35, default="en", validators=[language_validator])
    birth_year = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1900)], help_text="Who gives none counts as a minor."
    )
    training_consented_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text="Since when what the user says and does may become training data; empty is never.",
    )

    objects: ClassVar[UserManager] = UserManager()

    class Meta(auth_models.AbstractUser.Meta):
        ordering = ["-date_joined", "-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(role=Role.STAFF, is_staff=True) | (~Q(role=Role.STAFF) & Q(is_staff=False)),
                name="user_is_staff_by_role",
            )
        ]

    @property
    def training_consent(self) -> bool:
        return self.training_consented_at is not None

    def clean(self) -> None:
        super().clean()
        if self.training_consent and (self.birth_year is None or self.birth_year > latest_adult_birth_year()):
            raise ValidationError({"training_consent": "Only adults can give it: birth_year must say so."})

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.is_staff = self.role == Role.STAFF
        new_password = getattr(self, "_password", None) is not None and not self._state.adding
        super().save(*args, **kwargs)
        if new_password:  # whoever knew the old one must be out
            Token.objects.filter(user=self).delete()


class Token(TimestampedModel, AbstractAuthToken):
    """A bearer token: only its digest is kept, so it is shown once, when it is made."""

    created = token_key = None  # knox's: `created_at` and the unique digest serve instead
    digest = models.CharField(max_length=128, unique=True)
    expiry = models.DateTimeField()
    name = models.CharField(max_length=100, blank=True, help_text="What the user calls it.")

    objects: ClassVar[models.Manager["Token"]] = models.Manager()

    class Meta:
        ordering = ["-created_at", "-id"]

    def __str__(self) -> str:
        return self.name or str(self.id)
