from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.contrib.auth.validators import UnicodeUsernameValidator
from rest_framework import serializers

from apps.common.serializers import StrictSerializer
from apps.users.models import Token, User

PASSWORD_LENGTH = 128


class PasswordField(serializers.CharField):
    def __init__(self, **kwargs: Any) -> None:
        style = {"input_type": "password"}
        super().__init__(max_length=PASSWORD_LENGTH, trim_whitespace=False, write_only=True, style=style, **kwargs)


class UserSerializer(serializers.ModelSerializer[User]):
    training_consent = serializers.BooleanField(
        help_text="Whether what the user says and does may become training data."
    )
    email_confirmed = serializers.BooleanField(
        source="is_confirmed", help_text="While false the account may read and be managed, and nothing else."
    )

    class Meta:
        model = User
        fields = (
            "id",
            "username",
            "email",
            "role",
            "interests",
            "level",
            "language",
            "birth_year",
            "training_consent",
            "email_confirmed",
            "date_joined",
        )
        read_only_fields = fields


class UserUpdateSerializer(StrictSerializer, serializers.ModelSerializer[User]):
    training_consent = serializers.BooleanField(
        required=False, help_text="Whether what you say and do from now on may become training data; adults only."
    )

    class Meta:
        model = User
        fields = ("interests", "level", "language", "birth_year", "training_consent")


class RegisterSerializer(StrictSerializer):
    username = serializers.CharField(max_length=150, validators=[UnicodeUsernameValidator()])
    email = serializers.EmailField(max_length=254)
    password = PasswordField()
    birth_year = serializers.IntegerField(
        min_value=1900, max_value=9999, default=None, allow_null=True, help_text="Who gives none counts as a minor."
    )


class RegisteredSerializer(serializers.Serializer[Any]):
    user = UserSerializer()
    token = serializers.CharField()


class LoginSerializer(StrictSerializer):
    username = serializers.CharField(max_length=150)
    password = PasswordField()
    name = serializers.CharField(max_length=100, default="", allow_blank=True, help_text="What to call the token.")


class LoggedInSerializer(serializers.Serializer[Any]):
    token = serializers.CharField()
    expires_at = serializers.DateTimeField()


class ConfirmSerializer(StrictSerializer):
    token = serializers.CharField(max_length=2000, help_text="That the mail has.")


class PasswordSerializer(StrictSerializer):
    password = PasswordField()


class PasswordChangeSerializer(StrictSerializer):
    old, new = PasswordField(), PasswordField()

    def validate_new(self, new: str) -> str:
        validate_password(new, self.context["request"].user)
        return new


class TokenSerializer(serializers.ModelSerializer[Token]):
    expires_at = serializers.DateTimeField(source="expiry")
    current = serializers.SerializerMethodField(help_text="This request's own token.")

    class Meta:
        model = Token
        fields = ("id", "name", "ending", "created_at", "expires_at", "current")
        read_only_fields = fields

    def get_current(self, token: Token) -> bool:
        return bool(token == self.context["request"].auth)


class TokenCreateSerializer(PasswordSerializer):
    name = serializers.CharField(max_length=100)


class TokenCreatedSerializer(TokenSerializer):
    """With the token itself, which is never shown again."""

    token = serializers.CharField()

    class Meta:
        model = Token
        fields = (*TokenSerializer.Meta.fields, "token")
