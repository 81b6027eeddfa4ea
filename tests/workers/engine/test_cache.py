"""Rows and their slots, on a storage of tokens in place of keys and values."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.fakes import FakeStorage
from workers.engine.cache import Place, Row, RowCache, common_prefix, slot_length


def fill(cache: RowCache, storage: FakeStorage, tokens: list[int], room: int = 0) -> Row:
    """A running row that holds `tokens`."""
    row = cache.open(max(room, len(tokens)), None, tokens)
    reused = len(row.tokens) or cache.reuse(row, tokens)
    storage.slot(row.place)[reused:] = tokens[reused:]
    row.tokens[:] = tokens
    return row


def test_slots_are_powers_of_two_from_256() -> None:
    assert [slot_length(n) for n in (1, 256, 257, 512, 513, 4096)] == [256, 256, 512, 512, 1024, 4096]


def test_running_rows_stand_first_and_without_gaps() -> None:
    storage = FakeStorage(16 * 256)
    cache = RowCache(storage, 16 * 256)
    rows = [fill(cache, storage, [n] * 20) for n in range(4)]
    cache.close(rows[1])
    assert [row.place.slot for row in rows] == [0, 3, 2, 1]
    new = fill(cache, storage, [9] * 20)
    assert new.place == Place(256, 3)
    assert [storage.slot(row.place) for row in [*rows, new]] == [[n] * 20 for n in (0, 1, 2, 3, 9)]


def test_what_was_used_longest_ago_makes_room() -> None:
    storage = FakeStorage(4 * 256)
    cache = RowCache(storage, 4 * 256)
    kept = [fill(cache, storage, [n] * 30) for n in range(4)]
    for row in kept:
        cache.close(row)
    again = cache.open(40, None)  # evicts the first
    assert cache.reuse(again, [1] * 31) == 30  # uses the second, and is kept instead of it
    cache.close(again)
    cache.open(40, None)
    probe = cache.open(40, None)  # evicts the third
    assert [cache.reuse(probe, [n] * 31) for n in range(4)] == [0, 30, 0, 30]


def test_a_long_row_takes_the_place_of_short_ones() -> None:
    storage = FakeStorage(4 * 256)
    cache = RowCache(storage, 4 * 256)
    for n in range(4):
        cache.close(fill(cache, storage, [n] * 30))
    assert cache.has_room(1000)
    assert not cache.has_room(1025)
    long = cache.open(1000, None)
    assert (long.place, cache.taken(running=True), cache.taken(running=False)) == (Place(1024, 0), 1024, 0)
    assert not cache.has_room(1)


def test_a_conversation_goes_on_in_its_row() -> None:
    storage = FakeStorage(4 * 256)
    cache = RowCache(storage, 4 * 256)
    talks = [[n] * 30 for n in range(4)]
    for talk in talks:
        cache.close(fill(cache, storage, talk))
    storage.fails_in = 1  # nothing is copied: the rows change places at most
    for talk in talks[::-1]:
        talk += [9] * 20
        row = cache.open(100, None, talk)
        assert row.tokens == talk[:30]
        storage.slot(row.place)[30:] = talk[30:]
        row.tokens[:] = talk
        storage.fails_in = -1
        cache.close(row)
    assert cache.taken(running=False) == 4 * 256


def test_another_adapters_row_is_not_gone_on_with() -> None:
    storage = FakeStorage(4 * 256)
    cache = RowCache(storage, 4 * 256)
    row = cache.open(100, "a")
    row.tokens[:] = storage.slot(row.place)[:] = [1] * 30
    cache.close(row)
    assert [cache.open(100, adapter, [1] * 40).tokens for adapter in (None, "b", "a")] == [[], [], [1] * 30]


def test_a_full_cache_is_not_laid_out_anew_for_every_row() -> None:
    """Hundreds of megabytes are copied each time."""
    storage = FakeStorage(64 * 256)
    cache = RowCache(storage, 64 * 256)
    chance = Random(1)
    running: list[Row] = []
    for number in range(600):
        if number == 200:
            storage.resized = 0
        length = chance.choice([200, 400, 900])
        while len(running) > 8 or not cache.has_room(length):
            cache.close(running.pop(chance.randrange(len(running))))
        running.append(fill(cache, storage, [number % 50, number // 50] * (length // 2)))
    assert storage.resized < 20


def test_a_row_that_says_nothing_new_is_not_kept() -> None:
    storage = FakeStorage(8 * 256)
    cache = RowCache(storage, 8 * 256)
    cache.close(fill(cache, storage, [5] * 30))
    cache.close(fill(cache, storage, [5] * 60))
    assert cache.taken(running=False) == 256
    cache.close(fill(cache, storage, [7] * 10))  # too short to be worth it
    assert cache.taken(running=False) == 256


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60), st.integers(0, 60))
def test_common_prefix(one: list[int], other: list[int], shared: int) -> None:
    one, other = one[:shared] + one, one[:shared] + other
    expected = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert common_prefix(one, other) == (expected if expected >= 16 or one[:16] == other[:16] else 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 4), st.integers(1, 1024)),  # a sequence of one of five beginnings
            st.integers(0, 10),  # close one of the running rows
        ),
        max_size=60,
    )
)
def test_rows_keep_what_they_hold_whatever_joins_and_leaves(events: list) -> None:
    capacity = 2048 + 512
    storage = FakeStorage(capacity)
    cache = RowCache(storage, capacity)
    running: list[Row] = []
    for event in events:
        if isinstance(event, tuple):
            kind, length = event
            if cache.has_room(length):
                tokens = [kind] * (length // 2) + [length % 50] * (length - length // 2)
                running.append(fill(cache, storage, tokens))
        elif event < len(running):
            cache.close(running.pop(event))
        for row in cache.rows():
            assert storage.slot(row.place)[: len(row.tokens)] == row.tokens
        assert [row for row in cache.rows() if row.running] == sorted(
            running, key=lambda row: (list(cache._arenas).index(row.place.length), row.place.slot)
        )
        for length in {row.place.length for row in running}:
            indices = sorted(row.place.slot for row in running if row.place.length == length)
            assert indices == list(range(len(indices)))
    for row in running:
        cache.close(row)
    assert cache.taken(running=True) == 0
    cache.clear()
    assert all(not arena for arena in storage.arenas.values())
