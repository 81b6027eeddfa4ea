"""Who waits and who is next. Needs no model."""

import heapq
from collections.abc import Callable, Sequence

from workers.engine.cache import blocks
from workers.engine.request import Ticket


class Scheduler:
    """Waiting requests by priority, then in order of arrival.

    The batch is a rectangle, rows by the longest row, and `capacity` bounds its area. A request that does not fit now
    holds back those behind it, so that short ones cannot starve it.
    """

    def __init__(self, capacity: int, batch_limit: int) -> None:
        self._capacity = capacity
        self._batch_limit = batch_limit
        self._heap: list[tuple[int, int, Ticket]] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, ticket: Ticket) -> None:
        heapq.heappush(self._heap, (ticket.request.priority, self._arrivals, ticket))
        self._arrivals += 1

    def take(self, running: Sequence[Ticket], joining: Sequence[Ticket], prefill_tokens: int) -> Ticket | None:
        """The next request, if it may run beside `running`, and be read together with those of them that are `joining`.

        What is read together is padded to the longest, and `prefill_tokens` bounds that; one alone may exceed it.
        """
        if not self._heap or len(running) >= self._batch_limit:
            return None
        ticket = self._heap[0][2]
        if (len(running) + 1) * blocks(max(other.longest for other in (*running, ticket))) > self._capacity:
            return None
        if joining and (len(joining) + 1) * max(other.length for other in (*joining, ticket)) > prefill_tokens:
            return None
        return heapq.heappop(self._heap)[2]

    def remove(self, unwanted: Callable[[Ticket], bool]) -> list[Ticket]:
        """Take out and return the waiting requests that are `unwanted`."""
        removed = [entry for entry in self._heap if unwanted(entry[2])]
        if removed:
            self._heap = [entry for entry in self._heap if not unwanted(entry[2])]
            heapq.heapify(self._heap)
        return [ticket for _, _, ticket in removed]
