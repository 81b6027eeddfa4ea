from uuid import UUID

from django.db.models import QuerySet
from django.http import JsonResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import ListAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.serializers import RefusalSerializer
from apps.common.throttles import LoginThrottle, RegistrationThrottle
from apps.common.views import ApiView
from apps.users import selectors, services
from apps.users.auth import AuthenticatedRequest
from apps.users.models import Token
from apps.users.serializers import (
    EraseSerializer,
    LoggedInSerializer,
    LoginSerializer,
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


class Register(PublicView):
    throttle_classes = (RegistrationThrottle,)

    @extend_schema(request=RegisterSerializer, responses={201: RegisteredSerializer})
    def post(self, request: Request) -> Response:
        """Make an account; the token in the answer is ready for use."""
        user, token = services.user_register(**self.validated(RegisterSerializer))
        return Response({"user": UserSerializer(user).data, "token": token}, status=status.HTTP_201_CREATED)


class Login(PublicView):
    @extend_schema(request=LoginSerializer, responses={200: LoggedInSerializer, 401: RefusalSerializer})
    def post(self, request: Request) -> Response:
        """Get a bearer token. After too many failures the answer is 429."""
        credentials = self.validated(LoginSerializer)
        with LoginThrottle.attempt(request, credentials["username"]):
            token, text = services.user_login(**credentials)
        return Response({"token": text, "expires_at": token.expiry})


class Logout(ApiView):
    @extend_schema(request=None, responses={204: None})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Revoke the token of this request."""
        services.user_logout(token=request.auth)
        return Response(status=status.HTTP_204_NO_CONTENT)


class TokenListCreate(ListAPIView[Token], ApiView):
    """The caller's valid tokens, newest first, without their text."""

    request: AuthenticatedRequest
    serializer_class = TokenSerializer

    def get_queryset(self) -> QuerySet[Token]:
        return selectors.token_list_for_user(user=self.request.user)

    @extend_schema(request=TokenCreateSerializer, responses={201: TokenCreatedSerializer})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Make a named token, for a script or another device."""
        token, text = services.token_create(user=request.user, **self.validated(TokenCreateSerializer))
        body = {**TokenSerializer(token, context=self.get_serializer_context()).data, "token": text}
        return Response(body, status=status.HTTP_201_CREATED)


class TokenDetail(ApiView):
    @extend_schema(responses={204: None})
    def delete(self, request: AuthenticatedRequest, token_id: UUID) -> Response:
        """Revoke a token."""
        services.token_revoke(token=selectors.token_get_for_user(user=request.user, token_id=token_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class Me(ApiView):
    @extend_schema(responses=UserSerializer)
    def get(self, request: AuthenticatedRequest) -> Response:
        """The caller's account and profile."""
        return Response(UserSerializer(request.user).data)

    @extend_schema(request=UserUpdateSerializer, responses=UserSerializer)
    def patch(self, request: AuthenticatedRequest) -> Response:
        """Change the profile. To take back `training_consent` deletes what was collected under it."""
        user = services.user_update(user=request.user, **self.validated(UserUpdateSerializer))
        return Response(UserSerializer(user).data)

    @extend_schema(request=EraseSerializer, responses={204: None})
    def delete(self, request: AuthenticatedRequest) -> Response:
        """Erase the account and everything that belongs to it, at once and for good."""
        with LoginThrottle.attempt(request, request.user.username):
            self.validated(EraseSerializer)
        services.user_erase(user=request.user)
        return Response(status=status.HTTP_204_NO_CONTENT)


class MeExport(ApiView):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: AuthenticatedRequest) -> JsonResponse:
        """Everything that is kept of the caller, as one JSON file."""
        response = JsonResponse(services.user_export(user=request.user), json_dumps_params={"ensure_ascii": False})
        response["Content-Disposition"] = 'attachment; filename="lyo-export.json"'
        return response
