from apps.training.admin import data, runs, schedules  # noqa: F401 - register their pages
