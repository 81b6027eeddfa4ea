"""Who is next, on tickets without a model."""

from tests.workers.fakes import FakeStorage
from workers.engine.cache import RowCache
from workers.engine.request import Ticket
from workers.engine.scheduler import AGEING_S, Scheduler


def ticket(name: str, priority: int = 0, longest: int = 100, alone: bool = False) -> Ticket:
    made = Ticket(name, lambda: None)
    made.priority, made.longest, made.alone = priority, longest, alone
    return made


BATCH = ticket("running", priority=1)
INTERACTIVE = ticket("running")


def scheduler(slots: int = 8, batch_limit: int = 4) -> tuple[Scheduler, RowCache]:
    cache = RowCache(FakeStorage(slots * 256), slots * 256)
    return Scheduler(cache, batch_limit), cache


def order(waiting: Scheduler) -> list[str]:
    taken = []
    while one := waiting.take([]):
        taken.append(one.id)
    return taken


def test_interactive_goes_before_batch_and_equals_in_order_of_arrival() -> None:
    waiting, _ = scheduler()
    for now, (name, priority) in enumerate([("batch", 1), ("first", 0), ("second", 0), ("urgent", -1)]):
        waiting.add(ticket(name, priority), now)
    assert order(waiting) == ["urgent", "first", "second", "batch"]


def test_waiting_makes_more_urgent() -> None:
    waiting, _ = scheduler()
    waiting.add(ticket("batch", 1), 0)
    waiting.add(ticket("soon", 0), AGEING_S - 1)
    waiting.add(ticket("late", 0), AGEING_S + 1)
    assert order(waiting) == ["soon", "batch", "late"]


def test_batch_work_leaves_rows_for_interactive_requests() -> None:
    waiting, _ = scheduler(batch_limit=4)
    for n in range(5):
        waiting.add(ticket(f"batch {n}", 1), 0)
    waiting.add(ticket("interactive"), 100)
    taken = [waiting.take([BATCH] * running).id for running in range(3)]
    assert taken == ["batch 0", "batch 1", "batch 2"]
    assert waiting.take([BATCH] * 3).id == "interactive"
    assert waiting.take([BATCH, BATCH, BATCH, INTERACTIVE]) is None
    assert waiting.take([BATCH, BATCH, INTERACTIVE]).id == "batch 3"


def test_batch_work_leaves_room_in_the_cache() -> None:
    waiting, cache = scheduler(slots=4, batch_limit=8)
    for _ in range(3):
        cache.open(100, None)
    waiting.add(ticket("batch", 1), 0)
    assert waiting.take([BATCH] * 3) is None
    waiting.add(ticket("interactive"), 100)
    assert waiting.take([BATCH] * 3).id == "interactive"


def test_batch_work_that_has_waited_long_holds_its_place_among_interactive_requests() -> None:
    waiting, cache = scheduler(slots=4, batch_limit=8)
    rows = [cache.open(100, None) for _ in range(4)]
    waiting.add(ticket("batch", 1), 0)
    waiting.add(ticket("interactive"), 100)
    assert waiting.take([INTERACTIVE] * 4) is None  # no room
    cache.close(rows.pop())
    assert waiting.take([INTERACTIVE] * 3).id == "batch"  # others' rows are not of its share


def test_who_is_to_run_alone_does() -> None:
    waiting, _ = scheduler()
    for name, alone in (("a", False), ("b", True), ("c", False)):
        waiting.add(ticket(name, alone=alone), 0)
    first = waiting.take([])
    assert waiting.take([first]) is None
    alone = waiting.take([])
    assert (alone.id, waiting.take([alone]), waiting.take([]).id) == ("b", None, "c")


def test_batch_work_may_have_all_of_an_idle_engine() -> None:
    waiting, _ = scheduler(slots=4, batch_limit=1)
    waiting.add(ticket("batch", 1, longest=1000), 0)
    assert waiting.take([]).id == "batch"


def test_what_does_not_fit_is_not_overtaken() -> None:
    waiting, cache = scheduler(slots=4)
    row = cache.open(100, None)
    waiting.add(ticket("large", longest=1000), 0)
    waiting.add(ticket("small", longest=100), 1)
    assert waiting.take([INTERACTIVE]) is None
    cache.close(row)
    assert waiting.take([]).id == "large"


def test_unwanted_requests_are_taken_out() -> None:
    waiting, _ = scheduler()
    for name, priority in (("a", 0), ("b", 1), ("c", 0)):
        waiting.add(ticket(name, priority), 0)
    assert [one.id for one in waiting.remove(lambda t: t.id in "bc")] == ["c", "b"]
    assert len(waiting) == 1
    assert order(waiting) == ["a"]
