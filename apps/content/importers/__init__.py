"""Readers of public formats. Pure: each yields the records of a file or folder, what is named before what names it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Unreadable(Exception):
    """A file as a whole that is not of the format; says where."""


@dataclass(frozen=True, slots=True)
class Record:
    """A topic, an item or a course as its source has it, to be validated; with `error` if it could not even be read.

    fields: those of `CatalogueTopicSerializer`, `CatalogueItemSerializer` or `CatalogueCourseSerializer`.
    """

    place: str
    kind: str = "item"
    fields: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def files_of(folder: Path, *endings: str) -> list[Path]:
    """Of a folder, those of these endings, in whatever case, in order."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(endings))
