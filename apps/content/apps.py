from django.apps import AppConfig


class ContentConfig(AppConfig):
    name = "apps.content"
    verbose_name = "Content"

    def ready(self) -> None:
        from apps.content import selectors
        from apps.users.services import export_register

        export_register("content", selectors.content_export)
