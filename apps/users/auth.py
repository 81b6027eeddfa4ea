from django.utils import timezone
from drf_spectacular.contrib.knox_auth_token import KnoxTokenScheme
from knox import auth
from knox.crypto import hash_token
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request

from apps.users.models import Token, User


class TokenAuthentication(auth.TokenAuthentication):
    """`Authorization: Bearer <token>`, in one query; expired tokens are left for `token_create` to clean up.

    Who has not confirmed an address may read, and where the view says so (`for_unconfirmed`) do more.
    """

    def authenticate(self, request: Request) -> tuple[User, Token] | None:
        found: tuple[User, Token] | None = super().authenticate(request)
        view = (request.parser_context or {}).get("view")
        may_all = request.method in SAFE_METHODS or getattr(view, "for_unconfirmed", False)
        if found and not may_all and not found[0].is_confirmed:
            raise PermissionDenied("Confirm your email address first.", code="email_not_confirmed")
        return found

    def authenticate_credentials(self, token: bytes) -> tuple[User, Token]:
        try:
            digest = hash_token(token.decode())
        except UnicodeDecodeError as error:
            raise AuthenticationFailed("Invalid token.") from error
        found = Token.objects.select_related("user").filter(digest=digest).first()
        if found is None:
            raise AuthenticationFailed("Invalid token.")
        if found.expiry <= timezone.now():
            raise AuthenticationFailed("The token has expired.")
        if not found.user.is_active:
            raise AuthenticationFailed("The account is not active.")
        return found.user, found


class AuthenticatedRequest(Request):
    """What a view gets once `IsAuthenticated` has let it through; a type, never an instance."""

    user: User
    auth: Token


class TokenScheme(KnoxTokenScheme):
    """How the OpenAPI schema describes it."""

    target_class = "apps.users.auth.TokenAuthentication"
    match_subclasses = True
    name = "bearer"
