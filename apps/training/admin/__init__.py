from apps.training.admin import (  # noqa: F401 - register their pages
    adapters,
    comparisons,
    data,
    evaluations,
    runs,
    schedules,
)
