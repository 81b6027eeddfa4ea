"""Rules that no linter states: what a process loads, which tasks exist, which settings are known."""

import subprocess
import sys

from celery.app.defaults import NAMESPACES, flatten
from django.conf import settings

from apps.jobs.dispatch import QUEUES, ROUTES
from lyo.celery import app


def loaded_after(code: str) -> set[str]:
    """Top-level modules of a fresh process that ran `code`."""
    program = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_web_process_never_loads_torch() -> None:
    modules = loaded_after(
        "import django, os\n"
        "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'lyo.settings')\n"
        "django.setup()\n"
        "from django.urls import get_resolver\n"
        "get_resolver().url_patterns\n"
        "import lyo.asgi"
    )
    assert "apps" in modules
    assert modules.isdisjoint({"torch", "transformers", "peft", "tokenizers", "workers"})


def test_the_engine_loads_neither_django_nor_celery() -> None:
    modules = loaded_after("import workers.engine.loop, workers.models.load")
    assert "torch" in modules
    assert modules.isdisjoint({"django", "celery", "apps", "lyo"})


def test_every_route_leads_to_a_registered_task() -> None:
    import workers.tasks.compare
    import workers.tasks.embed
    import workers.tasks.enrich
    import workers.tasks.evaluate
    import workers.tasks.feed
    import workers.tasks.foresee
    import workers.tasks.generate
    import workers.tasks.imports
    import workers.tasks.train
    import workers.tasks.understand  # noqa: F401 - registers

    app.loader.import_default_modules()
    missing = {route.task for route in ROUTES.values()} - set(app.tasks)
    assert missing == set()


def test_every_scheduled_task_is_registered_and_every_queue_has_a_canary() -> None:
    app.loader.import_default_modules()
    schedule = settings.CELERY_BEAT_SCHEDULE.values()
    assert {entry["task"] for entry in schedule} <= set(app.tasks)
    assert {entry["args"][0] for entry in schedule if entry["task"] == "jobs.canary"} == set(QUEUES)


def test_every_celery_setting_is_an_option_that_celery_knows() -> None:
    known = {name for name, _ in flatten(NAMESPACES)} | {"beat_schedule"}
    ours = {name.removeprefix("CELERY_").lower() for name in dir(settings) if name.startswith("CELERY_")}
    assert ours - known == set()
