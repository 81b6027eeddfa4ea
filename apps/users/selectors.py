from collections import Counter
from typing import Any
from uuid import UUID

from django.db.models import CASCADE, ManyToOneRel, Q, QuerySet
from django.utils import timezone
from rest_framework.exceptions import NotFound

from apps.users.models import Token, User, latest_adult_birth_year

DEMO = "@demo.invalid"  # ends the addresses of the demo's accounts


def user_list_consenting() -> QuerySet[User]:
    """Those from whom models may learn: adults who said so."""
    return User.objects.filter(training_consented_at__isnull=False, birth_year__lte=latest_adult_birth_year())


def deletion_counts(rows: QuerySet[Any]) -> Counter[str]:
    """Count the rows, and all that are deleted with them, by their models' names; none is read."""
    counts = Counter({str(rows.model._meta.verbose_name_plural): rows.count()})
    if not counts.total():
        return counts
    for relation in rows.model._meta.get_fields(include_hidden=True):
        if isinstance(relation, ManyToOneRel) and relation.on_delete is CASCADE:
            related = relation.related_model._base_manager.filter(**{f"{relation.field.name}__in": rows})
            counts += deletion_counts(related)
    return counts


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
