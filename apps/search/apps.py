from django.apps import AppConfig


class SearchConfig(AppConfig):
    name = "apps.search"
    verbose_name = "Search"

    def ready(self) -> None:
        from apps.common.examples import source_register
        from apps.search import selectors
        from apps.users.services import export_register

        source_register(selectors.SOURCE, selectors.query_observe)
        export_register("searches", selectors.query_export)
