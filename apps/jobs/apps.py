from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "apps.jobs"
    verbose_name = "Jobs"

    def ready(self) -> None:
        from apps.jobs import selectors, services
        from apps.users.services import erasure_register, export_register

        export_register("jobs", selectors.job_export)
        erasure_register("jobs", services.job_erase)
