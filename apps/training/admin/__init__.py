from apps.training.admin import data, runs  # noqa: F401 - register their pages
