"""What beat asks of the `default` worker."""

from celery import shared_task

from apps.content.selectors import item_pending
from apps.content.services import enrichment_request


@shared_task(name="content.enrich")
def enrich() -> None:
    """Ask for what came while a worker was ending its round."""
    if item_pending().exists():
        enrichment_request()
