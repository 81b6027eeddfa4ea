from django.apps import AppConfig


class InferenceConfig(AppConfig):
    name = "apps.inference"
    verbose_name = "Inference"

    def ready(self) -> None:
        from apps.inference import services
        from apps.jobs.services import finish_hook_register

        finish_hook_register("chat", services.outcome_record)
