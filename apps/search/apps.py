from django.apps import AppConfig


class SearchConfig(AppConfig):
    name = "apps.search"
    verbose_name = "Search"

    def ready(self) -> None:
        from apps.search import selectors
        from apps.users.services import export_register

        export_register("searches", selectors.query_export)
