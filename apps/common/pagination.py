import re
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import DataError
from rest_framework import pagination
from rest_framework.exceptions import NotFound
from rest_framework.exceptions import ValidationError as BadQuery
from rest_framework.request import Request

if TYPE_CHECKING:  # importing it here would be circular: its defaults name this module
    from rest_framework.views import APIView

WHOLE_NUMBER = re.compile(r"0*[1-9][0-9]*")


class CursorPagination(pagination.CursorPagination):
    """Pages that stay put while rows are added, newest first. A broken cursor is 404."""

    ordering: Any = ("-created_at", "-id")
    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 200

    def get_page_size(self, request: Request) -> int:
        """Of the query, up to the largest; raises `ValidationError` for what is no size."""
        asked = request.query_params.get(self.page_size_query_param, str(self.page_size))
        if not WHOLE_NUMBER.fullmatch(asked):
            raise BadQuery({self.page_size_query_param: ["Must be a whole number from 1."]})
        return min(int(asked), self.max_page_size) if len(asked) < 10 else self.max_page_size

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        parameters = super().get_schema_operation_parameters(view)
        for parameter in parameters:
            if parameter["name"] == self.page_size_query_param:
                parameter["schema"]["minimum"] = 1
        return parameters

    def paginate_queryset(self, queryset: Any, request: Request, view: "APIView | None" = None) -> list[Any] | None:
        try:
            return super().paginate_queryset(queryset, request, view)
        except (
            ValidationError,
            ValueError,
            DataError,
        ) as error:  # well-formed, but its position is not a value of ours
            raise NotFound(self.invalid_cursor_message) from error
