from django.apps import AppConfig


class TutorConfig(AppConfig):
    name = "apps.tutor"
    verbose_name = "Tutor"

    def ready(self) -> None:
        from apps.common.examples import source_register
        from apps.jobs.services import finish_hook_register
        from apps.tutor import selectors, services
        from apps.users.services import erasure_register, export_register

        finish_hook_register(services.JOB_KIND, services.message_record)
        source_register(selectors.SOURCE, selectors.answer_observe)
        export_register("conversations", selectors.conversation_export)
        erasure_register("conversations", services.conversation_erase)
