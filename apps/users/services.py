from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from django.contrib.admin.models import LogEntry
from django.contrib.auth import SESSION_KEY, authenticate
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import update_last_login
from django.contrib.auth.password_validation import validate_password
from django.contrib.sessions.models import Session
from django.core import signing
from django.core.exceptions import ValidationError
from django.core.mail import send_mail
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.db.models.expressions import Combinable
from django.utils import timezone
from knox.models import get_digest_token
from knox.settings import knox_settings
from rest_framework.exceptions import AuthenticationFailed

from apps.common.retention import delete_in_batches
from apps.common.streaming import paged
from apps.common.throttles import LoginThrottle
from apps.users import ledger
from apps.users.models import Erasure, Token, User
from apps.users.selectors import token_list_for_user
from lyo import env
from lyo.celery import app

logger = structlog.get_logger(__name__)

# What other apps keep of a user: they add it here in `AppConfig.ready`.
_exports: dict[str, Callable[[User], Any]] = {}
_erasures: dict[str, Callable[[User], None]] = {}
_withdrawals: dict[str, Callable[[User], None]] = {}


def export_register(name: str, export: Callable[[User], Any]) -> None:
    """Add `export(user)`, a JSON-able value in which lists may be iterators, to every export under `name`."""
    _exports[name] = export


def erasure_register(name: str, erase: Callable[[User], None]) -> None:
    """Have `erase(user)` called, in the same transaction, before a user's row is deleted."""
    _erasures[name] = erase


def withdrawal_register(name: str, withdraw: Callable[[User], None]) -> None:
    """Have `withdraw(user)` called, in the same transaction, when a user takes back the consent to training."""
    _withdrawals[name] = withdraw


# --- accounts ---


def user_register(*, username: str, email: str, password: str, birth_year: int | None = None) -> tuple[User, str]:
    """Make a learner's account and its first token; raises `ValidationError` that names the field."""
    user = User(username=username, email=email, birth_year=birth_year, awaits_confirmation=env.CONFIRM_EMAIL)
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise ValidationError({"password": error}) from error
    user.set_password(password)
    try:
        with transaction.atomic():
            user.full_clean()
            user.save()
            if user.awaits_confirmation:
                confirmation_request(user=user)
            return user, token_create(user=user)[1]
    except IntegrityError:
        user.full_clean()  # somebody took the name since the check: say so
        raise


@transaction.atomic
def user_login(*, username: str, password: str, name: str = "") -> tuple[Token, str]:
    """A new token; raises `AuthenticationFailed`, after as much work for an unknown name as for a wrong password."""
    user = authenticate(username=username, password=password)
    if not isinstance(user, User) or _locked(user).password != user.password:  # changed since it was checked
        raise AuthenticationFailed("Wrong user name or password.")
    update_last_login(User, user)
    return token_create(user=user, name=name)


def user_logout(*, token: Token) -> None:
    token_revoke(token=token)


@transaction.atomic
def user_logout_everywhere(*, user: User) -> None:
    """End all tokens, and all logins to the admin."""
    tokens_revoke(user=_locked(user))
    sessions_end(user=user)


@transaction.atomic
def password_change(*, user: User, old: str, new: str, token: Token) -> None:
    """Give an account another password, and end all its tokens but `token`, and its logins to the admin.

    Raises `ValidationError` where `old` is wrong. Whether `new` is strong enough, the caller has found out.
    """
    password_require(user=_locked(user), password=old, field="old")
    User.objects.filter(pk=user.pk).update(password=make_password(new))
    Token.objects.filter(user=user).exclude(pk=token.pk).delete()
    sessions_end(user=user)


def password_require(*, user: User, password: str, field: str = "password") -> None:
    """Raise `ValidationError` at `field` unless it is the user's password."""
    if not user.check_password(password):
        raise ValidationError({field: ValidationError("The password is wrong.", code="wrong_password")})


def sessions_end(*, user: User) -> None:
    """Delete the user's logins to the admin. There are few: only those who enter it have one."""
    sessions = Session.objects.filter(expire_date__gt=timezone.now()).iterator(chunk_size=500)
    mine = [one.pk for one in sessions if one.get_decoded().get(SESSION_KEY) == str(user.pk)]
    Session.objects.filter(pk__in=mine).delete()


def _locked(user: User) -> User:
    """The row as it is, whose other writers wait until the transaction ends."""
    return User.objects.select_for_update(no_key=True).get(pk=user.pk)


# --- confirmation of addresses ---

CONFIRMATION = "users.confirmation"  # salt of the tokens
CONFIRMATION_TEXT = """Hello {name},

somebody, probably you, has registered this address with Lyo. To confirm it:

  {how}

This is good for {hours} hours. If it was not you, you need do nothing: the account will be deleted.
"""


def confirmation_request(*, user: User) -> None:
    """Have a worker send the mail once the transaction has ended. Where the broker is away, the user asks again."""
    user_id = str(user.pk)
    send = partial(app.send_task, "users.send_confirmation", args=[user_id], queue="default")
    transaction.on_commit(send, robust=True)


def confirmation_send(*, user_id: UUID) -> None:
    """Send the mail with the token, unless the address is confirmed or the account gone."""
    user = User.objects.filter(pk=user_id, awaits_confirmation=True).first()
    if user is None:
        return
    token = signing.dumps({"user": str(user.pk), "email": user.email}, salt=CONFIRMATION)
    how = env.CONFIRM_URL.replace("{token}", token) or f"POST /api/v1/auth/confirm with this token:\n\n  {token}"
    text = CONFIRMATION_TEXT.format(name=user.username, how=how, hours=env.CONFIRMATION_HOURS)
    send_mail("Confirm your email address", text, None, [user.email])


def email_confirm(*, token: str) -> None:
    """Confirm the address that a mail's token was sent to; raises `ValidationError` for one that is no longer good."""
    try:
        sent = signing.loads(token, salt=CONFIRMATION, max_age=timedelta(hours=env.CONFIRMATION_HOURS))
    except signing.SignatureExpired as error:
        raise _bad_token("The token has expired: ask for another one.", "expired") from error
    except signing.BadSignature as error:
        raise _bad_token("This is no token of ours.", "invalid") from error
    if not User.objects.filter(pk=sent["user"], email=sent["email"]).update(awaits_confirmation=False):
        raise _bad_token("The account is gone, or has another address.", "invalid")


def _bad_token(detail: str, code: str) -> ValidationError:
    return ValidationError({"token": ValidationError(detail, code=code)})


def unconfirmed_erase(*, count: int = 100) -> int:
    """Erase accounts whose address was not confirmed in time, so that nobody's address is taken by another."""
    limit = timezone.now() - timedelta(days=env.UNCONFIRMED_DAYS)
    late = User.objects.filter(awaits_confirmation=True, date_joined__lt=limit)[:count] if env.CONFIRM_EMAIL else ()
    for user in late:
        user_erase(user=user)
    return len(late)


# --- standing ---


def users_establish(*, active: Q | Combinable) -> int:
    """Note of the users for whom `active` holds, and whose account is old enough, that they count from now on where a
    signal takes several learners: who makes many accounts in a day makes no trend. Returns how many are new."""
    old = timezone.now() - timedelta(days=env.SIGNAL_ACCOUNT_DAYS)
    young = User.objects.filter(established_at=None, date_joined__lte=old)
    return young.filter(active).update(established_at=timezone.now())


# --- profiles ---


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
    """All that is kept of a user, secrets excepted; what may be much of it are iterators."""
    fields = (
        "id",
        "username",
        "email",
        "first_name",
        "last_name",
        "role",
        "interests",
        "level",
        "language",
        "birth_year",
        "training_consented_at",
        "awaits_confirmation",
        "established_at",
        "is_superuser",
        "date_joined",
        "last_login",
    )
    tokens = token_list_for_user(user=user).values("id", "name", "ending", "created_at", "expiry")
    changes = LogEntry.objects.filter(user=user).values("id", "action_time", "object_repr", "change_message")
    return {
        "user": {
            **{field: getattr(user, field) for field in fields},
            "groups": list(user.groups.values_list("name", flat=True)),
        },
        "tokens": paged(tokens, "created_at", "id"),
        "admin_changes": paged(changes, "id"),
        **{name: export(user) for name, export in _exports.items()},
    }


@transaction.atomic
def user_erase(*, user: User) -> None:
    """Delete a user and all that is kept of them."""
    User.objects.select_for_update().filter(id=user.id).first()  # nothing new may come to be theirs meanwhile
    for erase in _erasures.values():
        erase(user)
    sessions_end(user=user)
    LogEntry.objects.filter(content_type__app_label="users", content_type__model="user", object_id=user.pk).delete()
    user_id, username, account = user.pk, user.username, ledger.account_hash(user.id)
    user.delete()
    logger.info("an account was erased", user_id=str(user_id))
    transaction.on_commit(lambda: LoginThrottle.forget(username))
    Erasure.objects.get_or_create(account=account)
    transaction.on_commit(lambda: ledger.add([account]), robust=True)  # the table says the same


def erasures_record() -> set[str]:
    """Have the ledger and the table say the same; returns the hashes of all accounts that were ever erased."""
    accounts = ledger.read() | set(Erasure.objects.values_list("account", flat=True))
    ledger.add(accounts)
    Erasure.objects.bulk_create([Erasure(account=account) for account in accounts], ignore_conflicts=True)
    return accounts


def erasures_replay() -> int:
    """Erase again those whom a restored database still has; returns how many."""
    erased = erasures_record()
    ids = [pk for pk in User.objects.values_list("id", flat=True).iterator() if ledger.account_hash(pk) in erased]
    for pk in ids:
        user_erase(user=User.objects.get(id=pk))
    return len(ids)


# --- tokens ---


@transaction.atomic
def token_mint(*, user: User, password: str, name: str) -> tuple[Token, str]:
    """Another token for a user who knows the password: a token alone makes none. Raises `ValidationError`."""
    password_require(user=_locked(user), password=password)
    return token_create(user=user, name=name)


def token_create(*, user: User, name: str = "") -> tuple[Token, str]:
    """A token and its text, which is not kept. Clears away the user's expired ones."""
    Token.objects.filter(user=user, expiry__lte=timezone.now()).delete()
    digest, text = get_digest_token()
    expiry = timezone.now() + knox_settings.TOKEN_TTL
    return Token.objects.create(user=user, name=name, ending=text[-4:], digest=digest, expiry=expiry), text


def tokens_revoke(*, user: User) -> int:
    """Log the user out everywhere; returns how many tokens that took."""
    return Token.objects.filter(user=user).delete()[0]


def token_revoke(*, token: Token) -> None:
    token.delete()


def expired_delete() -> int:
    """Delete tokens and logins to the admin that have expired; returns how many."""
    now = timezone.now()
    tokens, sessions = Token.objects.filter(expiry__lte=now), Session.objects.filter(expire_date__lte=now)
    return delete_in_batches(tokens) + delete_in_batches(sessions)
