"""What beat asks of the `default` worker."""

from celery import shared_task

from apps.search import services


@shared_task(name="search.count_words")
def count_words() -> None:
    services.words_refresh()


@shared_task(name="search.tidy")
def tidy() -> None:
    services.queries_forget()
