from uuid import UUID

from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import ListAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.errors import Conflict
from apps.common.serializers import RefusalSerializer
from apps.common.streaming import json_parts, streamed
from apps.common.throttles import ConfirmationThrottle, ExportThrottle, LoginThrottle, RegistrationThrottle
from apps.common.views import ApiView
from apps.users import selectors, services
from apps.users.auth import AuthenticatedRequest
from apps.users.models import Token
from apps.users.serializers import (
    ConfirmSerializer,
    LoggedInSerializer,
    LoginSerializer,
    PasswordChangeSerializer,
    PasswordSerializer,
    RegisteredSerializer,
    RegisterSerializer,
    TokenCreatedSerializer,
    TokenCreateSerializer,
    TokenSerializer,
    UserSerializer,
    UserUpdateSerializer,
)


class PublicView(ApiView):
    """For those who have no token yet; a stale one is not looked at."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    def get_authenticate_header(self, request: Request) -> str:
        return "Bearer"


class AccountView(ApiView):
    """What every account may do, also one whose address is not confirmed."""

    for_unconfirmed = True


class Register(PublicView):
    throttle_classes = (RegistrationThrottle,)

    @extend_schema(request=RegisterSerializer, responses={201: RegisteredSerializer})
    def post(self, request: Request) -> Response:
        """Make an account; the token in the answer is ready for use.

        Where addresses are confirmed (`email_confirmed` is false), it only reads until the token that was sent to the
        address comes back.
        """
        user, token = services.user_register(**self.validated(RegisterSerializer))
        LoginThrottle.welcome(request, user.username)
        return Response({"user": UserSerializer(user).data, "token": token}, status=status.HTTP_201_CREATED)


class Confirm(PublicView):
    throttle_classes = (RegistrationThrottle,)

    @extend_schema(request=ConfirmSerializer, responses={204: None})
    def post(self, request: Request) -> Response:
        """Confirm an email address with the token that was sent there."""
        services.email_confirm(**self.validated(ConfirmSerializer))
        return Response(status=status.HTTP_204_NO_CONTENT)


class ConfirmationRequest(AccountView):
    throttle_classes = (ConfirmationThrottle,)

    @extend_schema(request=None, responses={202: None, 409: RefusalSerializer})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Have the confirmation sent again. 409 where there is nothing to confirm."""
        if request.user.is_confirmed:
            raise Conflict("The address is confirmed.", code="already_confirmed")
        services.confirmation_request(user=request.user)
        return Response(status=status.HTTP_202_ACCEPTED)


class Login(PublicView):
    @extend_schema(request=LoginSerializer, responses={200: LoggedInSerializer, 401: RefusalSerializer})
    def post(self, request: Request) -> Response:
        """Get a bearer token. After too many failures, in whatever spelling of the name, the answer is 429."""
        credentials = self.validated(LoginSerializer)
        with LoginThrottle.attempt(request, credentials["username"]):
            token, text = services.user_login(**credentials)
        return Response({"token": text, "expires_at": token.expiry})


class Logout(AccountView):
    @extend_schema(request=None, responses={204: None})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Revoke the token of this request."""
        services.user_logout(token=request.auth)
        return Response(status=status.HTTP_204_NO_CONTENT)


class LogoutAll(AccountView):
    @extend_schema(request=None, responses={204: None})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Revoke all of the caller's tokens, this one too, and end their logins to the admin."""
        services.user_logout_everywhere(user=request.user)
        return Response(status=status.HTTP_204_NO_CONTENT)


class Password(AccountView):
    @extend_schema(request=PasswordChangeSerializer, responses={204: None})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Change the password. All other tokens end, and the logins to the admin; this token goes on."""
        asked = self.validated(PasswordChangeSerializer)
        with LoginThrottle.attempt(request, request.user.username):
            services.password_change(user=request.user, token=request.auth, **asked)
        return Response(status=status.HTTP_204_NO_CONTENT)


class TokenListCreate(ListAPIView[Token], AccountView):
    """The caller's valid tokens, newest first, without their text."""

    request: AuthenticatedRequest
    serializer_class = TokenSerializer

    def get_queryset(self) -> QuerySet[Token]:
        return selectors.token_list_for_user(user=self.request.user)

    @extend_schema(request=TokenCreateSerializer, responses={201: TokenCreatedSerializer})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Make a named token, for a script or another device. That takes the password."""
        asked = self.validated(TokenCreateSerializer)
        with LoginThrottle.attempt(request, request.user.username):
            token, text = services.token_mint(user=request.user, **asked)
        body = {**TokenSerializer(token, context=self.get_serializer_context()).data, "token": text}
        return Response(body, status=status.HTTP_201_CREATED)


class TokenDetail(AccountView):
    @extend_schema(responses={204: None})
    def delete(self, request: AuthenticatedRequest, token_id: UUID) -> Response:
        """Revoke a token."""
        services.token_revoke(token=selectors.token_get_for_user(user=request.user, token_id=token_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class Me(AccountView):
    @extend_schema(responses=UserSerializer)
    def get(self, request: AuthenticatedRequest) -> Response:
        """The caller's account and profile."""
        return Response(UserSerializer(request.user).data)

    @extend_schema(request=UserUpdateSerializer, responses=UserSerializer)
    def patch(self, request: AuthenticatedRequest) -> Response:
        """Change the profile. To take back `training_consent` deletes what was collected under it."""
        user = services.user_update(user=request.user, **self.validated(UserUpdateSerializer))
        return Response(UserSerializer(user).data)

    @extend_schema(request=PasswordSerializer, responses={204: None})
    def delete(self, request: AuthenticatedRequest) -> Response:
        """Erase the account and everything that belongs to it, at once and for good."""
        asked = self.validated(PasswordSerializer)
        with LoginThrottle.attempt(request, request.user.username):
            services.password_require(user=request.user, **asked)
        services.user_erase(user=request.user)
        return Response(status=status.HTTP_204_NO_CONTENT)


class MeExport(ApiView):
    throttle_classes = [ExportThrottle]

    http_method_names = ["get", "options"]  # a HEAD would read it all

    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: AuthenticatedRequest) -> StreamingHttpResponse:
        """Everything that is kept of the caller, as one JSON file, which is read while it is sent."""
        response = streamed(json_parts(services.user_export(user=request.user)), "application/json")
        response["Content-Disposition"] = 'attachment; filename="lyo-export.json"'
        return response
