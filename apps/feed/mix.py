"""The order in which entries are shown: by score, mixed so that no subject and no author fills a page."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from apps.feed.entries import Entry

WINDOW = 9  # entries before, among which a subject or an author is felt to come again
EXPLORE_EVERY, EXPLORE_AT = 10, 6  # of ten places the seventh is for what is there to be tried


def mixed(entries: Iterable[Entry], weights: dict[str, float], share: float) -> Iterator[Entry]:
    """The entries in their order; of any beginning about `share` teaches, as long as there is enough of both.

    A share of 1 leaves out what does not teach, a share of 0 what does. Greedy, as maximal marginal relevance
    (Carbonell and Goldstein, 1998), with the same subject and the same author for likeness.
    """
    wanted = [entry for entry in entries if (share > 0 if entry.teaches else share < 1)]
    tried = deque(entry for entry in wanted if entry.explored)
    scored = sorted(
        ((entry.score(weights), entry) for entry in wanted if not entry.explored), key=lambda pair: -pair[0]
    )
    teaching = [pair for pair in scored if pair[1].teaches]
    entertaining = [pair for pair in scored if not pair[1].teaches]
    last: deque[Entry] = deque(maxlen=WINDOW)
    taught = 0
    for place in range(len(wanted)):
        if tried and (place % EXPLORE_EVERY == EXPLORE_AT or not (teaching or entertaining)):
            entry = tried.popleft()
        else:
            behind = taught < share * (place + 1)
            queue = teaching if teaching and (behind or not entertaining) else entertaining
            entry = queue.pop(_best(queue, last, weights))[1]
        taught += entry.teaches
        last.append(entry)
        yield entry


def _best(queue: Sequence[tuple[float, Entry]], last: Iterable[Entry], weights: dict[str, float]) -> int:
    """The place of what is best beside the last few; `queue` is sorted by score."""
    subjects = Counter(entry.subject for entry in last)
    authors = Counter(entry.author for entry in last if entry.author)
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
