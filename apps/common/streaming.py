"""Answers of any length in little memory: rows are read page by page, and sent as they are read."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection
from django.db.models import Q, QuerySet
from django.http import StreamingHttpResponse

PAGE = 200  # rows
PART = 2**16  # characters that are sent at once


def release_connection() -> None:
    """Give the database connection back to the pool before a long wait."""
    if not connection.in_atomic_block:
        connection.close()


def streamed(parts: Iterator[bytes], content_type: str = "application/jsonl") -> StreamingHttpResponse:
    """Sends parts as they are made, on the request's thread, which keeps no database connection meanwhile."""

    def following() -> bytes:
        try:
            return next(parts, b"")
        finally:
            release_connection()

    async def body() -> AsyncIterator[bytes]:
        while part := await sync_to_async(following)():
            yield part

    return StreamingHttpResponse(body(), content_type=content_type)


def json_parts(value: Any) -> Iterator[bytes]:
    """The JSON of a value, whose iterators, however deep within, become arrays: they are read as the parts are."""
    part: list[str] = []
    size = 0
    for text in _json(value):
        part.append(text)
        size += len(text)
        if size >= PART:
            yield "".join(part).encode()
            part, size = [], 0
    yield "".join(part).encode()


def _json(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for place, (name, inner) in enumerate(value.items()):
            yield f"{', ' if place else '{'}{json.dumps(str(name), ensure_ascii=False)}: "
            yield from _json(inner)
        yield "}" if value else "{}"
    elif isinstance(value, Iterator):
        yield "["
        for place, inner in enumerate(value):
            yield ", " if place else ""
            yield from _json(inner)
        yield "]"
    else:
        yield json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False)


def paged(rows: QuerySet[Any, Any], *order: str, size: int = PAGE) -> Iterator[Any]:
    """The rows, or the dicts of `values`, by fields of which no two rows have all alike.

    Page by page, so that nobody who reads slowly holds a cursor or a connection.
    """
    rows = rows.order_by(*order)
    page = list(rows[:size])
    while page:
        yield from page
        last = page[-1]
        page = list(rows.filter(_beyond(last, order))[:size]) if len(page) == size else []


def _beyond(last: Any, order: tuple[str, ...]) -> Q:
    beyond = Q()
    same: dict[str, Any] = {}
    for name in order:
        value = last[name] if isinstance(last, dict) else getattr(last, name)
        beyond |= Q(**same, **{f"{name}__gt": value})
        same[name] = value
    return beyond
