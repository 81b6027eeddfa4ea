from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.utils import OperationalError

from apps.users.services import erasures_record
from lyo import backup


class Command(BaseCommand):
    help = "Write the database, files, adapters and erasures to a new folder, with a list of digests."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")

    def handle(self, *args: Any, to: Path, **options: Any) -> None:
        try:
            written = backup.backup(to, erasures=sorted(erasures_record()))
        except backup.Refused as error:
            raise CommandError(str(error)) from None
        except OperationalError as error:
            raise CommandError(f"{backup.AWAY} ({str(error).strip()})") from None
        self.stdout.write(f"{to}: {written:,} files")
