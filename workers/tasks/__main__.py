"""Keep and enter the adapter of a PEFT folder, unless it was made for another model than LYO_MODEL."""

import argparse
import sys
from pathlib import Path

import django

import lyo.celery  # noqa: F401 - names the settings
from workers.protocols import Refused


def main() -> str:
    """Returns what was done, in words."""
    parser = argparse.ArgumentParser(prog="manage.py import_adapter", description=__doc__)
    parser.add_argument("folder", type=Path, help="has adapter_config.json, adapter_model.safetensors and meta.json")
    parser.add_argument("--suffix", help="of its name; the folder's name by default")
    parser.add_argument("--task", default="", help="that it is for")
    parser.add_argument("--subject", default="", help="that it is for; all by default")
    parser.add_argument("--live", action="store_true", help="make it live where the task, or subject, has no route yet")
    arguments = parser.parse_args()
    if arguments.live and not arguments.task:
        parser.error("--live needs the --task whose route it goes on")
    django.setup()
    from apps.inference.models import Route
    from apps.inference.services import route_promote
    from workers.tasks.imports import adapter_find_or_import

    purpose = {"task": arguments.task, "subject": arguments.subject}
    folder = arguments.folder.resolve()
    adapter = adapter_find_or_import(folder, suffix=arguments.suffix or folder.name, **purpose)
    if arguments.live and not Route.objects.filter(**purpose).exists():
        route_promote(adapter=adapter, reason=f"import_adapter {arguments.folder}", **purpose)
        return f"{adapter.name} is live for {arguments.task}"
    return f"{adapter.name} is there"


if __name__ == "__main__":
    try:
        print(main())
    except Refused as refusal:
        if refusal.code == "other_base":
            print(f"skipped: {refusal}")
        else:
            sys.exit(f"cannot import the adapter: {refusal}")
