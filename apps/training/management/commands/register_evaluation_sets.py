from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.common.constants import Task
from apps.training.services.data import evaluation_set_register

ENDINGS = (".jsonl", ".csv", ".tsv", ".xlsx")
SHIPPED = Path(__file__).parents[2] / "evaluation_sets"


class Command(BaseCommand):
    help = "Register evaluation sets of files named <task>-<what>.jsonl, .csv or .xlsx; those that are there stay."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("folder", nargs="?", type=Path, default=SHIPPED, help="by default what is shipped")

    def handle(self, *args: Any, folder: Path, **options: Any) -> None:
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS):
            task = path.stem.partition("-")[0]
            if task not in Task.values:
                raise CommandError(f"{path.name} does not begin with one of {', '.join(Task.values)} and a hyphen")
            try:
                with path.open("rb") as stream:
                    made = evaluation_set_register(name=path.stem, task=task, stream=stream, filename=path.name)
                    self.stdout.write(str(made))
            except ValidationError as error:
                raise CommandError(f"{path.name}: {' '.join(error.messages)}") from error
