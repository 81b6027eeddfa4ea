from django.apps import AppConfig


class FeedConfig(AppConfig):
    name = "apps.feed"
    verbose_name = "Feed"

    def ready(self) -> None:
        from apps.common.examples import source_register
        from apps.feed import selectors, services
        from apps.users.services import erasure_register, export_register

        source_register(selectors.SOURCE, selectors.engagement_observe)
        export_register("feed", selectors.feed_export)
        erasure_register("feed", services.learner_erase)
