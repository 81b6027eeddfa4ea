"""What beat asks of the `default` worker."""

from celery import shared_task

from apps.inference import services


@shared_task(name="inference.watch_canaries")
def watch_canaries() -> None:
    services.canaries_watch()


@shared_task(name="inference.delete_expired")
def delete_expired() -> None:
    """What is past its retention, and uploads that nobody is to check any more."""
    services.outcome_delete_expired()
    services.uploads_delete_forgotten()
