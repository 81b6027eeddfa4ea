"""What beat asks of the `default` worker."""

import structlog
from celery import shared_task

from apps.feed import services

logger = structlog.get_logger(__name__)


@shared_task(name="feed.score")
def score() -> None:
    """Ask for scores for those who have done something new."""
    if jobs := services.scores_request():
        logger.info("feeds are to be scored", jobs=len(jobs))


@shared_task(name="feed.count_trends")
def count_trends() -> None:
    services.trends_count()


@shared_task(name="feed.learn")
def learn() -> None:
    """Ask for a new ranker where there is enough that is new."""
    services.ranker_request()


@shared_task(name="feed.foresee")
def foresee() -> None:
    """Each night: have the language model say what active learners will take to."""
    if jobs := services.foresights_request():
        logger.info("what learners will take to is to be foreseen", jobs=len(jobs))


@shared_task(name="feed.tidy")
def tidy() -> None:
    """Make the next months' tables, and delete what is past its retention, or of learners who are gone."""
    services.keys_forget()
    services.events_forget()
    services.rankings_forget()
    services.feeds_uncache()
    if made := services.partitions_ensure():
        logger.info("tables were made for events", tables=made)
