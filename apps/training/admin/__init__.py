from apps.training.admin import data  # noqa: F401 - registers its pages
