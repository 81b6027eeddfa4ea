from django.apps import AppConfig
from django.db.models.signals import post_migrate


class InferenceConfig(AppConfig):
    name = "apps.inference"
    verbose_name = "Inference"

    def ready(self) -> None:
        from apps.inference import selectors, services
        from apps.jobs.services import finish_hook_register
        from apps.users.services import export_register

        export_register("route_changes", selectors.route_change_export)
        finish_hook_register("chat", services.outcome_record)
        post_migrate.connect(services.models_register, sender=self)
