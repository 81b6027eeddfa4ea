"""The order in which entries are shown: by score, mixed so that no subject and no author fills a page."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from apps.feed.entries import Entry

WINDOW = 9  # entries before, among which a subject or an author is felt to come again
EXPLORE_EVERY, EXPLORE_AT = 10, 6  # of ten places the seventh is for what is there to be tried


def mixed(entries: Iterable[Entry], weights: dict[str, float], share: float) -> list[Entry]:
    """All entries, in their order; of any beginning at least about `share` teaches, and about the rest entertains.

    A share of 1 leaves out what does not teach, a share of 0 what does. Greedy, as maximal marginal relevance
    (Carbonell and Goldstein, 1998), with the same subject and the same author for likeness.
    """
    tried = deque(entry for entry in entries if entry.explored and (entry.teaches or share < 1))
    scored = [(entry.score(weights), entry) for entry in entries if not entry.explored]
    scored.sort(key=lambda pair: -pair[0])
    teaching = [pair for pair in scored if pair[1].teaches] if share > 0 else []
    entertaining = [pair for pair in scored if not pair[1].teaches] if share < 1 else []
    order: list[Entry] = []
    taught = 0
    while teaching or entertaining:
        if tried and len(order) % EXPLORE_EVERY == EXPLORE_AT:
            order.append(tried.popleft())
        else:
            wanted = share * (len(order) + 1)
            queue = teaching if (teaching and taught < wanted) or not entertaining else entertaining
            order.append(queue.pop(_best(queue, order, weights))[1])
        taught += order[-1].teaches
    return [*order, *tried]


def _best(queue: Sequence[tuple[float, Entry]], order: list[Entry], weights: dict[str, float]) -> int:
    """The place of what is best beside the last few; `queue` is sorted by score."""
    subjects = Counter(entry.subject for entry in order[-WINDOW:])
    authors = Counter(entry.author for entry in order[-WINDOW:] if entry.author)
    best, best_score = 0, float("-inf")
    for place, (score, entry) in enumerate(queue):
        if score <= best_score:  # nothing is added to a score, so none of the rest can be better
            break
        found = (
            score - weights["same_subject"] * subjects[entry.subject] - weights["same_author"] * authors[entry.author]
        )
        if found > best_score:
            best, best_score = place, found
    return best
