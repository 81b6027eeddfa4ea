"""Where candidates come from. A new source is one file here, and one line in `SOURCES`."""

from workers.scoring.feed.sources.content import Similar
from workers.scoring.feed.sources.followed import Followed
from workers.scoring.feed.sources.item_to_item import ItemToItem
from workers.scoring.feed.sources.next_topics import NextTopics
from workers.scoring.feed.sources.popular import Popular, Trending
from workers.scoring.feed.sources.profile import Profile
from workers.scoring.feed.sources.sequence import Sequence
from workers.scoring.feed.sources.source import Source

__all__ = ["SOURCES", "Source"]

SOURCES: tuple[type[Source], ...] = (
    ItemToItem,
    Sequence,
    Similar,
    NextTopics,
    Followed,
    Profile,
    Popular,
    Trending,
)
