"""Which row holds which tokens: room, reuse of what was computed before, and eviction. Needs no model.

Keys and values lie in arenas, one for each power of two of slot length, so that a row costs about what it needs and
attention over the rows of an arena is one product. Running rows stand first in their arena, without gaps. A row that
has ended stays as long as its room is not needed: a later request that begins alike, with the same adapter, copies
the beginning instead of computing it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

BLOCK = 256  # the shortest slot
WORTH_A_MOVE = 4
MIN_REUSE = 16  # every prompt begins with the same few marks; copying those is not worth it


class Place(NamedTuple):
    """A slot: the slot length of its arena, and its number there."""

    length: int
    slot: int


class Storage(Protocol):
    """Where the keys and values are. `tokens` are counted from a slot's beginning."""

    def resize(self, length: int, slots: int) -> None:
        """Give the arena of slots of `length` so many of them; the first keep what they hold."""

    def copy(self, source: Place, target: Place, tokens: int) -> None: ...

    def swap(self, one: Place, other: Place, tokens: int) -> None: ...


@dataclass(eq=False, slots=True)
class Row:
    """A sequence in the cache. `tokens` are those whose keys and values are there."""

    place: Place
    adapter: str | None
    tokens: list[int] = field(default_factory=list)
    running: bool = True
    last_used: int = 0


def slot_length(tokens: int) -> int:
    """The length of the slot that a row of `tokens` takes."""
    return max(BLOCK, 1 << (tokens - 1).bit_length())


class RowCache:
    """Rows in `capacity` positions of a storage."""

    def __init__(self, storage: Storage, capacity: int) -> None:
        self.capacity = capacity
        self._storage = storage
        self._arenas: dict[int, list[Row | None]] = {}  # slot length to slots; None is free
        self._uses = 0

    # --- what there is ---

    @property
    def longest(self) -> int:
        """The most tokens that one row can have."""
        return 1 << (self.capacity.bit_length() - 1) if self.capacity >= BLOCK else 0

    def rows(self) -> Iterator[Row]:
        return (row for arena in self._arenas.values() for row in arena if row)

    def taken(self, running: bool) -> int:
        """Positions in the slots of running rows, or of those kept for reuse."""
        return sum(row.place.length for row in self.rows() if row.running is running)

    def has_room(self, tokens: int) -> bool:
        """Whether a row of `tokens` may run beside the others."""
        return self.taken(running=True) + slot_length(tokens) <= self.capacity

    # --- a row's life ---

    def open(self, tokens: int, adapter: str | None, beginning: Sequence[int] = ()) -> Row:
        """A running row for up to `tokens`, which will begin so; `has_room` must hold.

        A row that has ended goes on where it is, if it is all of the beginning's beginning. Else the row that was used
        longest ago makes room; one of the same arena, unless another has lain `WORTH_A_MOVE` times as long, for giving
        an arena's slots to another copies both.
        """
        length = slot_length(tokens)
        known, shared = self._known(adapter, beginning)
        if known:
            self._touch(known)
            if not known.running and shared == len(known.tokens) and known.place.length == length:
                return self._run(known)
        idle = sorted((row for row in self.rows() if not row.running), key=lambda row: row.last_used)
        own = next((row for row in idle if row.place.length == length and row is not known), None)
        full = None not in self._arenas.get(length, ()) and self._unassigned() < length
        if own and full and self._age(idle[0]) <= WORTH_A_MOVE * self._age(own):
            self._evict(own)
        while self.taken(running=True) + self.taken(running=False) + length > self.capacity:
            self._evict(idle.pop(0))
        arena = self._arenas.setdefault(length, [])
        if None not in arena:
            self._grow(length)
        index = running_in(arena)
        if ended := arena[index]:
            self._move(ended, arena.index(None))
        row = arena[index] = Row(Place(length, index), adapter)
        return row

    def reuse(self, row: Row, tokens: Sequence[int]) -> int:
        """Fill an empty row with the longest known beginning of `tokens`, all but the last; returns its length."""
        known, shared = self._known(row.adapter, tokens)
        if known:
            self._touch(known)
            self._storage.copy(known.place, row.place, shared)
            row.tokens[:] = tokens[:shared]
        return shared

    def close(self, row: Row) -> None:
        """Stop running a row, and keep what it holds for reuse."""
        arena = self._arenas[row.place.length]
        self._exchange(row, running_in(arena) - 1)
        row.running = False
        self._touch(row)
        if len(row.tokens) < MIN_REUSE:
            self._evict(row)
        for other in list(self.rows()):
            alike = not other.running and other is not row and other.adapter == row.adapter
            if alike and row.tokens[: len(other.tokens)] == other.tokens:  # it knows nothing more
                self._evict(other)

    def clear(self) -> None:
        """Forget all rows and give their memory back."""
        lengths = list(self._arenas)
        self._arenas.clear()
        for length in lengths:
            self._storage.resize(length, 0)

    # --- slots ---

    def _known(self, adapter: str | None, tokens: Sequence[int]) -> tuple[Row | None, int]:
        """The row that begins longest like `tokens`, all but the last, and how long that is."""
        best, longest = None, MIN_REUSE - 1
        wanted = tokens[:-1]
        for row in self.rows():
            if row.adapter == adapter and (shared := common_prefix(row.tokens, wanted)) > longest:
                best, longest = row, shared
        return best, longest if best else 0

    def _run(self, row: Row) -> Row:
        """Have a row that has ended run again."""
        self._exchange(row, running_in(self._arenas[row.place.length]))
        row.running = True
        return row

    def _touch(self, row: Row) -> None:
        self._uses += 1
        row.last_used = self._uses

    def _age(self, row: Row) -> int:
        """How many uses of rows ago it was used itself."""
        return self._uses - row.last_used + 1

    def _exchange(self, row: Row, index: int) -> None:
        """Put a row into another slot of its arena, and what is there into its own."""
        arena = self._arenas[row.place.length]
        other = arena[index]
        if other is None:
            self._move(row, index)
        elif other is not row:
            self._storage.swap(row.place, other.place, max(len(row.tokens), len(other.tokens)))
            row.place, other.place = other.place, row.place
            arena[row.place.slot], arena[other.place.slot] = row, other

    def _evict(self, row: Row) -> None:
        self._arenas[row.place.length][row.place.slot] = None

    def _move(self, row: Row, index: int) -> None:
        """Put a row into a free slot of its arena."""
        arena = self._arenas[row.place.length]
        target = row.place._replace(slot=index)
        self._storage.copy(row.place, target, len(row.tokens))
        arena[row.place.slot], arena[index] = None, row
        row.place = target

    def _grow(self, length: int) -> None:
        """Add slots to an arena: as many again where there is room, at least one; others give up their free slots."""
        if self._unassigned() < length:
            for other in self._arenas:
                self._trim(other)
        arena = self._arenas[length]
        more = max(1, min(len(arena), self._unassigned() // length))
        arena += [None] * more
        self._storage.resize(length, len(arena))

    def _trim(self, length: int) -> None:
        arena = self._arenas[length]
        occupied = sum(row is not None for row in arena)
        for row in arena[occupied:]:
            if row:
                self._move(row, arena.index(None))
        if occupied < len(arena):
            del arena[occupied:]
            self._storage.resize(length, occupied)

    def _unassigned(self) -> int:
        return self.capacity - sum(length * len(arena) for length, arena in self._arenas.items())


def running_in(arena: Sequence[Row | None]) -> int:
    """How many run; they stand first."""
    return sum(row is not None and row.running for row in arena)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens the two share."""
    if one[:MIN_REUSE] != other[:MIN_REUSE]:
        return 0  # most pairs; and too short to matter
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
