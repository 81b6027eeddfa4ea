from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import DataError
from rest_framework import pagination
from rest_framework.exceptions import NotFound
from rest_framework.request import Request

if TYPE_CHECKING:  # importing it here would be circular: its defaults name this module
    from rest_framework.views import APIView


class CursorPagination(pagination.CursorPagination):
    """Pages that stay put while rows are added, newest first. A broken cursor is 404."""

    ordering: Any = ("-created_at", "-id")
    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 200

    def paginate_queryset(self, queryset: Any, request: Request, view: "APIView | None" = None) -> list[Any] | None:
        try:
            return super().paginate_queryset(queryset, request, view)
        except (
            ValidationError,
            ValueError,
            DataError,
        ) as error:  # well-formed, but its position is not a value of ours
            raise NotFound(self.invalid_cursor_message) from error
