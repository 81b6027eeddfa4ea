from django.apps import AppConfig


class TrainingConfig(AppConfig):
    name = "apps.training"
    verbose_name = "Training"

    def ready(self) -> None:
        from apps.common.examples import deletion_register
        from apps.jobs.services import finish_hook_register
        from apps.training.selectors import data as selectors
        from apps.training.services import adapters, evaluations, runs
        from apps.training.services import data as services
        from apps.users.services import erasure_register, export_register, withdrawal_register

        finish_hook_register(runs.JOB_KIND, runs.run_record_end)
        finish_hook_register(adapters.IMPORT_KIND, adapters.upload_forget)
        finish_hook_register(evaluations.JOB_KIND, evaluations.evaluation_record)
        deletion_register(services.examples_forget)
        export_register("training_examples", selectors.example_export)
        export_register("training", selectors.training_export)
        erasure_register("training_examples", services.learner_erase)
        withdrawal_register("training_examples", services.learner_erase)
