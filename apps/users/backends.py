from django.contrib.auth import backends
from django.contrib.auth.models import Permission
from django.db.models import Q, QuerySet

from apps.users.models import Role, User


class RoleBackend(backends.ModelBackend):
    """Django's own, but that teachers have the permissions of the group of that name without being members."""

    def _get_group_permissions(self, user_obj: User) -> QuerySet[Permission]:
        groups = Q(group__user=user_obj)
        if user_obj.role == Role.TEACHER:
            groups |= Q(group__name=Role.TEACHER)
        return Permission.objects.filter(groups).distinct()
