"""What beat and registration ask of the `default` worker."""

from smtplib import SMTPException
from uuid import UUID

import structlog
from celery import shared_task

from apps.users import services

logger = structlog.get_logger(__name__)


@shared_task(
    name="users.send_confirmation",
    autoretry_for=(OSError, SMTPException),  # the mail server's, of either kind
    max_retries=5,
    retry_backoff=30,
    retry_jitter=True,
)
def send_confirmation(user_id: str) -> None:
    services.confirmation_send(user_id=UUID(user_id))


@shared_task(name="users.tidy")
def tidy() -> None:
    """Delete tokens and logins that have expired, and accounts that were never confirmed."""
    services.expired_delete()
    if erased := services.unconfirmed_erase():
        logger.info("accounts were erased whose address was not confirmed", accounts=erased)
