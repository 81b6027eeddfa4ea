from typing import Any, ClassVar

from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

IDEMPOTENCY_KEY_LENGTH = 200


class HasPermission(BasePermission):
    """Lets those through who have the Django permissions that the view declares for the method: those that the admin
    asks for. What a view of this kind declares nothing for is nobody's.

    Each of them is needed; in "a.b or a.c", one of the two.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        method = "GET" if request.method in ("HEAD", "OPTIONS") else request.method
        needed = view.permissions.get(method)
        if needed is None:
            return method not in view.allowed_methods  # the answer will be 405
        missing = [names for names in needed if not any(map(request.user.has_perm, names.split(" or ")))]
        self.message = f"You need the permission {' and '.join(missing)}."
        return not missing


class ApiView(APIView):
    """What the views of `/api/v1` have in common.

    permissions: of a view that `HasPermission` guards, by method.
    """

    permissions: ClassVar[dict[str, tuple[str, ...]]] = {}

    def validated(self, serializer_class: type[serializers.Serializer[Any]], partial: bool = False) -> dict[str, Any]:
        """The request's body in the serializer's form, or the fields that it has of that; raises `ValidationError` that
        names each wrong field."""
        serializer = serializer_class(data=self.request.data, partial=partial, context={"request": self.request})
        serializer.is_valid(raise_exception=True)
        data: dict[str, Any] = serializer.validated_data
        return data

    def queried(self, serializer_class: type[serializers.Serializer[Any]]) -> dict[str, Any]:
        """The query in the serializer's form; raises `ValidationError` that names each wrong or empty parameter."""
        serializer = serializer_class(data=self.request.query_params.dict())
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)

    def idempotency_key(self) -> str | None:
        key = self.request.headers.get("Idempotency-Key")
        if key and (len(key) > IDEMPOTENCY_KEY_LENGTH or not key.isprintable()):
            raise ValidationError({"Idempotency-Key": [f"At most {IDEMPOTENCY_KEY_LENGTH} printable characters."]})
        return key
