from collections.abc import Callable
from typing import Any

from django.contrib.auth import authenticate
from django.contrib.auth.models import update_last_login
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone
from knox.models import get_digest_token
from knox.settings import knox_settings
from rest_framework.exceptions import AuthenticationFailed

from apps.users.models import Token, User
from apps.users.selectors import token_list_for_user

# What other apps keep of a user: they add it here in `AppConfig.ready`.
_exports: dict[str, Callable[[User], Any]] = {}
_erasures: dict[str, Callable[[User], None]] = {}
_withdrawals: dict[str, Callable[[User], None]] = {}


def export_register(name: str, export: Callable[[User], Any]) -> None:
    """Add `export(user)`, a JSON-able list or dict, to every export under `name`."""
    _exports[name] = export


def erasure_register(name: str, erase: Callable[[User], None]) -> None:
    """Have `erase(user)` called, in the same transaction, before a user's row is deleted."""
    _erasures[name] = erase


def withdrawal_register(name: str, withdraw: Callable[[User], None]) -> None:
    """Have `withdraw(user)` called, in the same transaction, when a user takes back the consent to training."""
    _withdrawals[name] = withdraw


# --- accounts ---


def user_register(*, username: str, email: str, password: str) -> tuple[User, str]:
    """Make a learner's account and its first token; raises `ValidationError` that names the field."""
    user = User(username=username, email=email)
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise ValidationError({"password": error}) from error
    user.set_password(password)
    try:
        with transaction.atomic():
            user.full_clean()
            user.save()
            return user, token_create(user=user)[1]
    except IntegrityError:
        user.full_clean()  # somebody took the name since the check: say so
        raise


def user_login(*, username: str, password: str, name: str = "") -> tuple[Token, str]:
    """A new token; raises `AuthenticationFailed`, after as much work for an unknown name as for a wrong password."""
    user = authenticate(username=User.normalize_username(username), password=password)
    if not isinstance(user, User):
        raise AuthenticationFailed("Wrong user name or password.")
    update_last_login(User, user)
    return token_create(user=user, name=name)


def user_logout(*, token: Token) -> None:
    token_revoke(token=token)


@transaction.atomic
def user_update(*, user: User, training_consent: bool | None = None, **changes: Any) -> User:
    """Change the user's own profile; raises `ValidationError` where a minor would consent to training.

    Consent counts from when it is given; with its end, what was taken under it goes.
    """
    withdrawn = training_consent is False and user.training_consent
    if withdrawn or (training_consent and not user.training_consent):
        changes["training_consented_at"] = timezone.now() if training_consent else None
    for field, value in changes.items():
        setattr(user, field, value)
    user.clean()
    user.save(update_fields=[*changes])
    if withdrawn:
        for withdraw in _withdrawals.values():
            withdraw(user)
    return user


def user_export(*, user: User) -> dict[str, Any]:
    """All that is kept of a user, secrets excepted."""
    fields = (
        "id",
        "username",
        "email",
        "role",
        "interests",
        "level",
        "language",
        "birth_year",
        "training_consented_at",
        "date_joined",
        "last_login",
    )
    tokens = token_list_for_user(user=user).values("id", "name", "created_at", "expiry")
    return {
        "user": {field: getattr(user, field) for field in fields},
        "tokens": list(tokens),
        **{name: export(user) for name, export in _exports.items()},
    }


@transaction.atomic
def user_erase(*, user: User) -> None:
    """Delete a user and all that is kept of them."""
    User.objects.select_for_update().filter(id=user.id).first()  # nothing new may come to be theirs meanwhile
    for erase in _erasures.values():
        erase(user)
    user.delete()


# --- tokens ---


def token_create(*, user: User, name: str = "") -> tuple[Token, str]:
    """A token and its text, which is not kept. Clears away the user's expired ones."""
    Token.objects.filter(user=user, expiry__lte=timezone.now()).delete()
    digest, text = get_digest_token()
    expiry = timezone.now() + knox_settings.TOKEN_TTL
    return Token.objects.create(user=user, name=name, digest=digest, expiry=expiry), text


def tokens_revoke(*, user: User) -> int:
    """Log the user out everywhere; returns how many tokens that took."""
    return Token.objects.filter(user=user).delete()[0]


def token_revoke(*, token: Token) -> None:
    token.delete()
