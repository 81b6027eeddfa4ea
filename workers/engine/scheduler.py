"""Who waits and who is next. Needs no model."""

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

from workers.engine.cache import RowCache, slot_length
from workers.engine.request import Ticket

AGEING_S = 10.0  # of waiting that raise a request by one level of priority
BATCH_SHARE = 0.75  # of rows and cache that batch work may take: an interactive request always finds a place soon


class Waiting(NamedTuple):
    urgency: float
    arrival: int
    ticket: Ticket


class Scheduler:
    """Waiting requests, the most urgent first.

    Urgency is the time of arrival plus `AGEING_S` for every level of priority: who waits long enough overtakes
    later arrivals of a better priority, so batch work (priority above 0) is not starved. A request that does not fit
    now holds back those behind it, so that short ones cannot starve it; only batch work that has used up its share is
    passed by. A request that is to run `alone` waits for an empty batch, and others for its end.
    """

    def __init__(self, cache: RowCache, batch_limit: int) -> None:
        self._cache = cache
        self._batch_limit = batch_limit
        self._interactive: list[Waiting] = []
        self._batch: list[Waiting] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._interactive) + len(self._batch)

    def add(self, ticket: Ticket, now: float) -> None:
        """Queue a request that arrived at `now`, in seconds."""
        ticket.urgency = now + AGEING_S * ticket.priority
        heap = self._batch if ticket.priority > 0 else self._interactive
        heapq.heappush(heap, Waiting(ticket.urgency, self._arrivals, ticket))
        self._arrivals += 1

    def take(self, running: Sequence[Ticket]) -> Ticket | None:
        """The next request that may start beside the running ones."""
        if len(running) >= self._batch_limit or any(ticket.alone for ticket in running):
            return None
        heads = [heap for heap in (self._interactive, self._batch) if heap]
        for heap in sorted(heads, key=lambda heap: heap[0]):
            ticket = heap[0].ticket
            if heap is self._batch and self._has_its_share(ticket, running):
                continue
            fits = self._cache.has_room(ticket.longest) and not (ticket.alone and running)
            return heapq.heappop(heap).ticket if fits else None
        return None

    def _has_its_share(self, ticket: Ticket, running: Sequence[Ticket]) -> bool:
        """Whether batch work would take more than its share with this ticket too."""
        batch = [slot_length(other.longest) for other in running if other.priority > 0]
        positions = sum(batch) + slot_length(ticket.longest)
        return bool(batch) and (
            len(batch) + 1 > self._batch_limit * BATCH_SHARE or positions > self._cache.capacity * BATCH_SHARE
        )

    def remove(self, unwanted: Callable[[Ticket], bool]) -> list[Ticket]:
        """Take out and return the waiting requests that are `unwanted`."""
        removed = []
        for heap in (self._interactive, self._batch):
            if any(unwanted(entry.ticket) for entry in heap):
                removed += [entry.ticket for entry in heap if unwanted(entry.ticket)]
                heap[:] = [entry for entry in heap if not unwanted(entry.ticket)]
                heapq.heapify(heap)
        return removed
