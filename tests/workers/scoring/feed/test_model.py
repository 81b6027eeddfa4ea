"""The feed's model on made-up histories, whose next items are known."""

import numpy as np
import pytest

from workers.scoring.feed.catalogue import Batch
from workers.scoring.feed.evaluation import compared, evaluated
from workers.scoring.feed.interactions import Interactions
from workers.scoring.feed.model import FeedModel, propose
from workers.scoring.feed.sources.item_to_item import ItemToItem
from workers.scoring.feed.sources.popular import Popular, Trending
from workers.scoring.feed.sources.sequence import Sequence

DAY_S = 86_400.0


def interactions(*histories: list[int], items: int = 0, step: float = DAY_S) -> Interactions:
    """A learner for each history: items, a day apart."""
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    done = np.array([item for history in histories for item in history], np.int64)
    times = np.concatenate([np.arange(len(history)) * step for history in histories] or [[]])
    size = max(items, int(done.max()) + 1 if len(done) else 0)
    return Interactions.of(users, done, times, np.ones(len(done)), (len(histories), size))


def chains(learners: int = 80, items: int = 30) -> Interactions:
    """Everybody goes round the same circle of items, from another place."""
    return interactions(*[[(start * 7 + step) % items for step in range(8)] for start in range(learners)], items=items)


def test_rows_are_in_the_order_of_learners_and_time() -> None:
    users, items, times = np.array([1, 0, 1, 0]), np.array([5, 6, 7, 8]), np.array([9.0, 4.0, 3.0, 2.0])
    found = Interactions.of(users, items, times, np.ones(4), (2, 9))
    assert (found.users.tolist(), found.items.tolist()) == ([0, 0, 1, 1], [8, 6, 7, 5])
    assert found.starts.tolist() == [0, 2, 4]


def test_recent_rows_weigh_less_the_older_they_are() -> None:
    found = interactions([0, 1, 2], [3], items=4).recent(2, 0.5).toarray()
    assert found.tolist() == [[0, 0.5, 1, 0], [0, 0, 0, 1]]


def test_the_last_share_is_one_at_least_and_nothing_of_those_with_one() -> None:
    held = interactions([0, 1, 2, 3, 4], [0, 1], [0]).last_share(0.4)
    assert held.tolist() == [False, False, False, True, True, False, True, False]


def test_learners_are_taken_out_in_their_order() -> None:
    found = interactions([0], [1, 2], [3]).of_users(np.array([2, 1]))
    assert (found.users.tolist(), found.items.tolist()) == ([0, 1, 1], [3, 1, 2])


def test_sequence_says_what_came_next() -> None:
    past = interactions(*[[0, 1, 2]] * 20, *[[3, 4, 5]] * 20)
    scores = Sequence.fit(past, None).scores(Batch(interactions([0], [3], items=6)))
    assert scores.argmax(1).tolist() == [1, 4]


def test_item_to_item_says_what_goes_with_it() -> None:
    past = interactions(*[[0, 1]] * 20, *[[2, 3]] * 20, *[[0, 1, 2, 3]] * 2)
    scores = ItemToItem.fit(past, None).scores(Batch(interactions([0], [3], items=4)))
    assert scores.argmax(1).tolist() == [1, 2]


def test_the_trend_forgets_and_popularity_does_not() -> None:
    past = interactions([0, 1, 1], [0, 1], [0], [0], step=30 * DAY_S)
    batch = Batch(interactions([], items=2))
    assert Popular.fit(past, None).scores(batch)[0].argmax() == 0
    assert Trending.fit(past, None).scores(batch)[0].argmax() == 1


def test_nothing_known_is_proposed() -> None:
    past = chains()
    sources = FeedModel.fit(past).sources
    found = propose(sources, Batch(past.of_users(np.array([0, 1]))))
    known = past.of_users(np.array([0, 1])).matrix
    assert len(found.rows) > 20
    assert not np.asarray(known[found.rows, found.items]).any()


def test_the_learned_ranker_foresees_the_next_item_better_than_any_source_added_up() -> None:
    past = chains()
    held = past.last_share(0.0)
    before, after = past.keep(~held), past.keep(held)
    model = FeedModel.fit(before)
    figures = compared({"learned": model}, before, after, k=1)
    assert figures["learned"]["hit_rate"] > 0.9


def test_too_few_learners_make_no_ranker_and_sources_are_added_up() -> None:
    model = FeedModel.fit(interactions([0, 1, 2], [0, 1, 2], items=4))
    assert model.ranker is None
    assert model.ranked(Batch(interactions([0], items=4)), 1).tolist() == [[1]]


def test_no_history_at_all_gives_something_to_begin_with() -> None:
    model = FeedModel.fit(interactions([], items=3))
    assert model.ranker is None
    assert sorted(model.ranked(Batch(interactions([], items=3)), 3)[0].tolist()) == [0, 1, 2]


def test_lyo_beats_what_does_not_see_the_order() -> None:
    past = chains()
    held = past.last_share(0.2)
    figures = evaluated(past.keep(~held), past.keep(held), 5)
    assert set(figures) == {"lyo", "popularity", "item_knn", "ease", "als", "markov"}
    assert figures["lyo"]["ndcg"] > figures["popularity"]["ndcg"] + 0.3
    assert all(0 <= value <= 1 for found in figures.values() for value in found.values())


@pytest.mark.parametrize("k", [1, 3])
def test_measures_are_those_of_the_textbook(k: int) -> None:
    from workers.scoring.feed.evaluation import measured

    before, after = interactions([0], [0], items=4), interactions([1, 2], [3], items=4)
    figures = measured(lambda history: np.array([[1, 3, 2], [1, 2, 0]])[:, :k], before, after, k)
    ideal = 1 if k == 1 else 1 + 1 / np.log2(3)
    assert figures["ndcg"] == pytest.approx((1 + (0.5 if k == 3 else 0)) / ideal / 2, abs=1e-4)
    assert figures["recall"] == (0.25 if k == 1 else 0.5)
    assert figures["hit_rate"] == 0.5
