from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.utils import OperationalError, ProgrammingError

from apps.users import ledger
from apps.users.selectors import people_exist
from apps.users.services import erasures_record
from lyo import backup


class Command(BaseCommand):
    help = (
        "Replace database, files and adapters by those of a backup, which is verified first; whoever was erased since "
        "is erased again before anybody sees it. Web and workers may run."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--from", type=Path, required=True, metavar="FOLDER", dest="source")
        parser.add_argument("--force", action="store_true", help="also where there are accounts, which are lost")

    def handle(self, *args: Any, source: Path, force: bool, **options: Any) -> None:
        try:
            backup.verify(source)
            try:
                if people_exist() and not force:
                    raise CommandError("There are accounts here, which would be lost: --force (FORCE=1) says so.")
                erasures_record()
            except ProgrammingError:
                pass  # an empty database, without tables
            ledger.add(ledger.read(source / backup.ERASURES))
            backup.restore(source, say=self.stdout.write)
        except backup.Refused as error:
            raise CommandError(str(error)) from None
        except OperationalError as error:
            raise CommandError(f"{backup.AWAY} ({str(error).strip()})") from None
