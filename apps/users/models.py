import unicodedata
from collections.abc import Collection
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
from apps.common.names import folded
from lyo import env

language_validator = RegexValidator(
    r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*\Z", 'Must be a language tag such as "en" or "pt-BR".'
)


ADULT_AGE = 18


class Role(models.TextChoices):
    LEARNER = "learner", "Learner"
    TEACHER = "teacher", "Teacher"
    STAFF = "staff", "Staff"


DESK = (Role.TEACHER, Role.STAFF)  # who may enter the admin


def latest_adult_birth_year() -> int:
    """Whoever was born by its end is of age, whatever their birthday."""
    return timezone.now().year - ADULT_AGE - 1


def validate_birth_year(year: int) -> None:
    if year > timezone.now().year:
        raise ValidationError("Must not be in the future.", code="max_value")


class FoldedField(models.TextField):  # type: ignore[type-arg] # not at run time
    """Another field's text without case and width, so that no two rows have what looks the same; written with it."""

    def __init__(self, of: str, **options: Any) -> None:
        self.of = of
        super().__init__(**{"editable": False, **options})

    def deconstruct(self) -> Any:
        name, path, arguments, options = super().deconstruct()
        return name, path, arguments, {**options, "of": self.of}

    def pre_save(self, model_instance: models.Model, add: bool) -> str:
        text = folded(getattr(model_instance, self.of) or "")
        setattr(model_instance, self.attname, text)
        return text


class UserManager(auth_models.UserManager["User"]):
    @classmethod
    def normalize_email(cls, email: str | None) -> str:
        """Lower case and one width throughout. Letters stay: a domain's ß is no ss."""
        return unicodedata.normalize("NFKC", email or "").lower()

    def get_by_natural_key(self, username: str | None) -> "User":
        """By any spelling of the name."""
        return self.get(username_key=folded(username or ""))

    def create_superuser(
        self, username: str, email: str | None = None, password: str | None = None, **extra_fields: Any
    ) -> "User":
        return super().create_superuser(username, email, password, **{"role": Role.STAFF, **extra_fields})


class User(auth_models.AbstractUser):
    """A person with an account. Only superusers change roles, in the admin.

    `is_staff`, by which Django lets people into the admin, follows the role: teachers and staff may enter. What they
    may do there and over the API is a matter of permissions, which teachers have by their role (`users.backends`).
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    username_key = FoldedField(
        of="username", unique=True, error_messages={"unique": "A user with that username already exists."}
    )
    email = models.EmailField("email address")
    email_key = FoldedField(
        of="email", unique=True, error_messages={"unique": "A user with that email address already exists."}
    )
    awaits_confirmation = models.BooleanField(
        default=False, help_text="Has not confirmed the email address yet: may read, and manage the account."
    )
    established_at = models.DateTimeField(
        null=True,
        editable=False,
        help_text="Since when the account is old and active enough to count where it takes several learners.",
    )
    role = models.CharField(max_length=10, choices=Role.choices, default=Role.LEARNER)
    interests = ArrayField(models.CharField(max_length=50), size=20, default=list, blank=True)
    level = models.CharField(max_length=20, choices=Level.choices, default=Level.BEGINNER)
    language = models.CharField(max_length=35, default="en", validators=[language_validator])
    birth_year = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1900), validate_birth_year],
        help_text="Who gives none counts as a minor.",
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
                condition=Q(role__in=DESK, is_staff=True) | (~Q(role__in=DESK) & Q(is_staff=False)),
                name="user_is_staff_by_role",
            )
        ]

    @property
    def training_consent(self) -> bool:
        return self.training_consented_at is not None

    @property
    def is_confirmed(self) -> bool:
        return not (self.awaits_confirmation and env.CONFIRM_EMAIL)

    def clean_fields(self, exclude: Collection[str] | None = None) -> None:
        """Check what will be stored: normalised, a name may be longer than it was, or have other characters."""
        self.username = self.normalize_username(self.username)
        self.email = UserManager.normalize_email(self.email)
        for field in KEYS.values():
            field.pre_save(self, add=self._state.adding)
        super().clean_fields(exclude)

    def clean(self) -> None:
        super().clean()
        if self.training_consent and (self.birth_year is None or self.birth_year > latest_adult_birth_year()):
            raise ValidationError({"training_consent": "Only adults can give it: birth_year must say so."})

    def validate_unique(self, exclude: Collection[str] | None = None) -> None:
        """Say of the name or address itself that it is taken, whoever leaves out its key, as the admin's forms do."""
        left_out = set(exclude or ()) - {field.name for field in KEYS.values()}
        try:
            super().validate_unique(left_out | {KEYS[name].name for name in KEYS if name in left_out})
        except ValidationError as error:
            errors = error.error_dict
            for name, field in KEYS.items():
                if same := errors.pop(field.name, None):
                    errors[name] = same
            raise ValidationError(errors) from error

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.is_staff = self.role in DESK
        if (fields := kwargs.get("update_fields")) is not None:
            kwargs["update_fields"] = {*fields, *(KEYS[name].name for name in KEYS if name in fields)}
        new_password = getattr(self, "_password", None) is not None and not self._state.adding
        super().save(*args, **kwargs)
        if new_password:  # whoever knew the old one must be out
            Token.objects.filter(user=self).delete()


# The folded field of each that has one.
KEYS = {field.of: field for field in User._meta.concrete_fields if isinstance(field, FoldedField)}


class Erasure(models.Model):
    """That an account was erased: see `ledger`."""

    account = models.CharField(max_length=64, primary_key=True, help_text="The hash of its id.")
    at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.account


class Token(TimestampedModel, AbstractAuthToken):
    """A bearer token: only its digest is kept, so it is shown once, when it is made."""

    created = token_key = None  # knox's: `created_at` and the unique digest serve instead
    digest = models.CharField(max_length=128, unique=True)
    expiry = models.DateTimeField()
    name = models.CharField(max_length=100, blank=True, help_text="What the user calls it.")
    ending = models.CharField(max_length=4, blank=True, help_text="Its last characters, by which its user knows it.")

    objects: ClassVar[models.Manager["Token"]] = models.Manager()

    class Meta:
        ordering = ["-created_at", "-id"]

    def __str__(self) -> str:
        return self.name or str(self.id)
