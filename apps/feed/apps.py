from django.apps import AppConfig


class FeedConfig(AppConfig):
    name = "apps.feed"
    verbose_name = "Feed"

    def ready(self) -> None:
        from apps.feed import selectors, services
        from apps.users.services import erasure_register, export_register

        export_register("feed", selectors.feed_export)
        erasure_register("feed", services.learner_erase)
