from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.safestring import mark_safe
from rest_framework.exceptions import Throttled
from unfold.admin import ModelAdmin, TabularInline
from unfold.forms import AdminPasswordChangeForm, AuthenticationForm, UserChangeForm, UserCreationForm

from apps.common.throttles import LoginThrottle
from apps.users import selectors, services
from apps.users.models import Role, Token, User


class LoginForm(AuthenticationForm):
    """Counts failures together with those of the API."""

    def clean(self) -> dict[str, Any]:
        try:
            with LoginThrottle.attempt(self.request, self.cleaned_data.get("username", "")):
                return dict(super().clean())
        except Throttled as error:
            raise ValidationError(str(error.detail)) from error


admin.site.login_form = LoginForm
admin.site.unregister(Group)


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    """Permissions for staff who are not superusers; only superusers hand them out."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_superuser)

    has_add_permission = has_module_permission

    def has_change_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return bool(request.user.is_superuser)

    has_delete_permission = has_view_permission = has_change_permission


class TokenInline(TabularInline):
    """The user's tokens; ticking "delete" revokes one."""

    model = Token
    fields = readonly_fields = ("name", "ending", "created_at", "expiry")
    extra = max_num = 0


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):  # type: ignore[type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "role", "level", "language", "is_active", "date_joined", "last_login")
    list_filter = ("role", "is_active", "awaits_confirmation", "is_superuser", "level", "date_joined")
    search_fields = ("username", "email")
    ordering = ("-date_joined",)
    date_hierarchy = "date_joined"
    readonly_fields = ("change_password", "birth_year", "training_consented_at", "date_joined", "last_login")
    fieldsets = (
        (None, {"fields": ("username", "email", "awaits_confirmation", "role", "is_active", "change_password")}),
        ("Profile", {"fields": ("interests", "level", "language", "birth_year", "training_consented_at")}),
        ("Permissions", {"fields": ("is_superuser", "groups", "user_permissions")}),
        ("Times", {"fields": ("date_joined", "last_login")}),
    )
    add_fieldsets = ((None, {"fields": ("username", "email", "role", "usable_password", "password1", "password2")}),)
    inlines = (TokenInline,)
    actions = ("revoke_tokens",)

    @admin.display(description="Password")
    def change_password(self, user: User) -> str:
        return mark_safe('<a href="../password/">Change</a>')

    @admin.action(description="Revoke all tokens", permissions=["change"])
    def revoke_tokens(self, request: HttpRequest, users: QuerySet[User]) -> None:
        count = sum(services.tokens_revoke(user=user) for user in users if self._may_touch(request, user))
        self.message_user(request, f"{count} tokens revoked.", messages.SUCCESS)

    def get_inlines(self, request: HttpRequest, obj: User | None) -> Any:
        return super().get_inlines(request, obj) if obj else ()

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[str, ...]:
        """Who is not a superuser makes nobody more powerful."""
        fields = tuple(super().get_readonly_fields(request, obj))
        return fields if request.user.is_superuser else (*fields, "role", "is_superuser", "groups", "user_permissions")

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return super().has_change_permission(request, obj) and self._may_touch(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return super().has_delete_permission(request, obj) and self._may_touch(request, obj)

    def _may_touch(self, request: HttpRequest, obj: User | None) -> bool:
        """Who is not a superuser manages learners and teachers who may do nothing that they may not do themselves, and
        of others only their own account."""
        if request.user.is_superuser or obj is None or obj == request.user:
            return True
        if obj.role == Role.STAFF or obj.is_superuser:
            return False
        given = Permission.objects.filter(Q(user=obj) | Q(group__user=obj))  # by the role alone, nobody gets to harm
        return all(request.user.has_perm(f"{one.content_type.app_label}.{one.codename}") for one in given)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> tuple[Any, Any, set[str], Any]:
        """Count what is theirs, of which there may be any amount, and list the users alone.

        Who may delete a user may delete what is theirs, though the admin lets nobody delete it by itself.
        """
        allowed = all(self.has_delete_permission(request, obj) for obj in objs)
        counts = selectors.deletion_counts(User.objects.filter(pk__in=[obj.pk for obj in objs]))
        return [str(obj) for obj in objs], counts, set() if allowed else {"user"}, []

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        services.user_erase(user=obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            services.user_erase(user=user)
