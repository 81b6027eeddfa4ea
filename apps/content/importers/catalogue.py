"""Lyo's own catalogues: lines of JSON, each a topic, an item or a course; sheets (.csv, .xlsx), of items; or a folder.

Topics come first, in the order of teaching, then items, then courses, whatever the files are called. In sheets, topics
and tags are parted by ";".
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rest_framework.exceptions import ParseError

from apps.common.parsers import loads
from apps.common.sheets import BadSheet, is_sheet, sheet_of, utf8_lines
from apps.content.importers import Record, Unreadable, files_of

ENDINGS = (".jsonl", ".csv", ".tsv", ".xlsx")
KINDS = ("topic", "item", "course")
LISTS = ("topics", "tags")
NUMBERS = ("duration",)


def read(path: Path) -> Iterator[Record]:
    files = files_of(path, *ENDINGS) if path.is_dir() else [path]
    if not files:
        raise Unreadable(f"{path} has no file that ends in {', '.join(ENDINGS)}")
    records = [record for file in files for record in _read_file(file)]
    for position, topic in enumerate(record for record in records if record.kind == "topic"):
        topic.fields.setdefault("position", position)
    for kind in KINDS:
        yield from (record for record in records if record.kind == kind)


def _read_file(file: Path) -> Iterator[Record]:
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
            stream.seek(0)
            if is_sheet(file.name, head):
                yield from _read_sheet(file.name, stream.read())
            else:
                yield from _read_jsonl(file.name, stream)
    except (OSError, BadSheet) as error:
        raise Unreadable(f"{file}: {error}") from error


def _read_jsonl(name: str, stream: Any) -> Iterator[Record]:
    for number, line in enumerate(utf8_lines(stream), start=1):
        place = f"{name}, line {number}"
        if not line.strip():
            continue
        try:
            fields = loads(line, "It", unique=True)
        except ParseError as error:
            yield Record(place, error=str(error.detail))
            continue
        if not isinstance(fields, dict):
            yield Record(place, error="It is no JSON object.")
            continue
        yield Record(place, _kind_of(fields), fields)


def _read_sheet(name: str, data: bytes) -> Iterator[Record]:
    sheet = sheet_of(data)
    for line, row in sheet.records():
        place = f"{name}, line {line}"
        if row is None:
            yield Record(place, error=f"It does not have the {len(sheet.columns)} columns of the header.")
        else:
            yield Record(place, "item", {name: _parsed(name, cell) for name, cell in row.items() if cell})


def _parsed(name: str, cell: str) -> Any:
    if name in LISTS:
        return [part.strip() for part in cell.split(";") if part.strip()]
    return int(cell) if name in NUMBERS and cell.isascii() and cell.isdigit() else cell


def _kind_of(fields: dict[str, Any]) -> str:
    return "topic" if "slug" in fields else "course" if "units" in fields else "item"
