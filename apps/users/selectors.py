from uuid import UUID

from django.db.models import Q, QuerySet
from django.utils import timezone
from rest_framework.exceptions import NotFound

from apps.users.models import Token, User, latest_adult_birth_year

DEMO = "@demo.invalid"  # ends the addresses of the demo's accounts


def user_list_consenting() -> QuerySet[User]:
    """Those from whom models may learn: adults who said so."""
    return User.objects.filter(training_consented_at__isnull=False, birth_year__lte=latest_adult_birth_year())


def token_list_for_user(*, user: User) -> QuerySet[Token]:
    """The user's valid tokens, newest first."""
    return Token.objects.filter(user=user, expiry__gt=timezone.now())


def token_get_for_user(*, user: User, token_id: UUID) -> Token:
    """The user's token; raises `NotFound` for a foreign or unknown id alike."""
    token = Token.objects.filter(user=user, id=token_id).first()
    if token is None:
        raise NotFound
    return token


def people_exist() -> bool:
    """Whether there is any account but those of the demo, or somebody has entered by one of these."""
    unused_demo = Q(email__endswith=DEMO, last_login=None)
    return User.objects.exclude(unused_demo).exists() or Token.objects.exists()
