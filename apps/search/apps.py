from django.apps import AppConfig


class SearchConfig(AppConfig):
    name = "apps.search"
    verbose_name = "Search"

    def ready(self) -> None:
        from apps.common.examples import source_register
        from apps.jobs.services import finish_hook_register
        from apps.search import selectors, services
        from apps.users.services import export_register

        finish_hook_register(services.JOB_KIND, services.understanding_keep)
        source_register(selectors.SOURCE, selectors.query_observe)
        export_register("searches", selectors.query_export)
