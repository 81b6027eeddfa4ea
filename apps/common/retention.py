"""Deleting a lot without holding up anybody."""

from typing import Any

from django.db.models import QuerySet

BATCH = 500  # rows of a statement


def delete_in_batches(rows: QuerySet[Any]) -> int:
    """Delete the rows, some hundred by a statement; returns how many they were, without what went with them.

    Outside of a transaction each batch is one of its own, so that nobody waits long for a lock.
    """
    count = 0
    while keys := list(rows.order_by().values_list("pk", flat=True)[:BATCH]):
        rows.model._default_manager.filter(pk__in=keys).delete()
        count += len(keys)
    return count
