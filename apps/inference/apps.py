from django.apps import AppConfig


class InferenceConfig(AppConfig):
    name = "apps.inference"
    verbose_name = "Inference"

    def ready(self) -> None:
        from apps.inference import selectors, services
        from apps.jobs.services import finish_hook_register
        from apps.users.services import export_register

        export_register("route_changes", selectors.route_change_export)
        finish_hook_register("chat", services.outcome_record)
