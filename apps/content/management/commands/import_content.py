from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from rest_framework.exceptions import ValidationError

from apps.common.constants import Subject
from apps.common.serializers import StrictSerializer, texts_of
from apps.content import services
from apps.content.importers import Record, Unreadable, catalogue, exercism, openstax
from apps.content.models import Item, Status
from apps.content.serializers import (
    CatalogueCourseSerializer,
    CatalogueItemSerializer,
    CatalogueTopicSerializer,
)

READERS = {"catalogue": catalogue.read, "exercism": exercism.read, "openstax": openstax.read}
KEPT_BY: dict[str, tuple[type[StrictSerializer], str, Callable[..., services.Outcome]]] = {  # with the name of the key
    "topic": (CatalogueTopicSerializer, "slug", services.topic_put),
    "item": (CatalogueItemSerializer, "key", services.item_put),
    "course": (CatalogueCourseSerializer, "key", services.course_put),
}
SHIPPED = Path(__file__).parents[2] / "catalogue"
SHOWN = 100  # errors
EACH = 500  # records between two notes of how far it is


class Command(BaseCommand):
    help = (
        "Bring content in. A record with an error is reported by its place, and then nothing is kept: mend it, or let "
        "--skip-errors keep the others; a course then keeps the lessons that are there. What was brought in before, by "
        "its key, is changed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "path", nargs="?", type=Path, default=SHIPPED, help="a file or a folder; the demo's if none"
        )
        parser.add_argument("--format", choices=READERS, default="catalogue")
        parser.add_argument("--subject", choices=Subject.values, help="of what does not say its own")
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
        parser.add_argument("--skip-errors", action="store_true", help="keep the records that have none")

    def handle(self, *args: Any, **options: Any) -> None:
        done: Counter[str] = Counter()
        errors: list[str] = []
        places: dict[tuple[str, str], str] = {}
        keeps = not options["dry_run"]
        try:
            with transaction.atomic():
                for number, record in enumerate(READERS[options["format"]](options["path"]), start=1):
                    if record.kind == "course":
                        errors += [f"{record.place}: {text}" for text in _lessons_missing(record)]
                    try:
                        done[f"{record.kind}s {self._keep(record, options['subject'], places)}"] += 1
                    except ValidationError as error:
                        errors += [f"{record.place}: {text}" for text in texts_of(error.detail)]
                    if number % EACH == 0:
                        self.stdout.write(f"{number} records read")
                if errors and not options["skip_errors"]:
                    keeps = False
                transaction.set_rollback(not keeps)
        except Unreadable as error:
            raise CommandError(str(error)) from error
        for text in errors[:SHOWN]:
            self.stderr.write(text)
        if len(errors) > SHOWN:
            self.stderr.write(f"… and {len(errors) - SHOWN} more errors")
        summary = ", ".join(f"{count} {what}" for what, count in sorted(done.items())) or "nothing"
        if keeps:
            self.stdout.write(summary)
        elif options["dry_run"]:
            self.stdout.write(f"{summary}: nothing was kept, as this was a dry run")
        if errors and not options["skip_errors"]:
            raise CommandError(f"{len(errors)} errors: nothing was kept. Mend them, or repeat with --skip-errors.")

    def _keep(self, record: Record, subject: str | None, places: dict[tuple[str, str], str]) -> str:
        """Raises `ValidationError`, also where another record of this import has the key: nobody knows which is meant.

        places: of the records that were read, by kind and key.
        """
        if record.error:
            raise ValidationError(record.error)
        serializer_class, name, put = KEPT_BY[record.kind]
        defaults = {"subject": subject} if subject and record.kind != "topic" else {}
        serializer = serializer_class(data={**defaults, **record.fields})
        serializer.is_valid(raise_exception=True)
        key = serializer.validated_data[name]
        if first := places.get((record.kind, key)):
            raise ValidationError({name: f"{key!r} is that of {first}, too."})
        places[record.kind, key] = record.place
        with transaction.atomic():
            return put(**serializer.validated_data)


def _lessons_missing(record: Record) -> Iterator[str]:
    """Say which items a course names that are not there; it is left with the others."""
    units = [unit for unit in _list(record.fields.get("units")) if isinstance(unit, dict)]
    named = {key for unit in units for key in _list(unit.get("lessons")) if isinstance(key, str)}
    there = set(Item.objects.exclude(status=Status.ARCHIVED).filter(key__in=named).values_list("key", flat=True))
    for number, unit in enumerate(units):
        for key in _list(unit.get("lessons")):
            if key in named and key not in there:
                yield f"units.{number}.lessons: There is no item {key}."
        if isinstance(unit.get("lessons"), list):
            unit["lessons"] = [key for key in unit["lessons"] if key in there or key not in named]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
