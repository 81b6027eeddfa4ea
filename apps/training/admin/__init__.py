from apps.training.admin import adapters, data, runs, schedules  # noqa: F401 - register their pages
