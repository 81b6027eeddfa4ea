"""Lyo's own catalogues: .jsonl, a topic, an item or a course on each line; .csv, items; or a folder of both.

Topics come first, in the order of teaching, then items, then courses, whatever the files are called. In CSV, topics and
tags are parted by ";".
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rest_framework.exceptions import ParseError

from apps.common.parsers import loads
from apps.content.importers import Record, Unreadable

csv.field_size_limit(10_000_000)  # the form of items says how long a cell may be

KINDS = ("topic", "item", "course")
LISTS = ("topics", "tags")
NUMBERS = ("duration",)


def read(path: Path) -> Iterator[Record]:
    files = sorted([*path.glob("*.jsonl"), *path.glob("*.csv")]) if path.is_dir() else [path]
    if not files:
        raise Unreadable(f"{path} has no .jsonl and no .csv file")
    records = [record for file in files for record in _read_file(file)]
    for position, topic in enumerate(record for record in records if record.kind == "topic"):
        topic.fields.setdefault("position", position)
    for kind in KINDS:
        yield from (record for record in records if record.kind == kind)


def _read_file(file: Path) -> Iterator[Record]:
    try:
        yield from _read_csv(file) if file.suffix == ".csv" else _read_jsonl(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(f"{file}: {error}") from error


def _read_jsonl(file: Path) -> Iterator[Record]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file.name}, line {number}"
            if not line.strip():
                continue
            try:
                fields = loads(line, "It")
            except ParseError as error:
                yield Record(place, error=str(error.detail))
                continue
            if not isinstance(fields, dict):
                yield Record(place, error="It is no JSON object.")
                continue
            yield Record(place, _kind_of(fields), fields)


def _read_csv(file: Path) -> Iterator[Record]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, strict=True)
        for row in reader:
            place = f"{file.name}, line {reader.line_num}"
            if None in row or None in row.values():
                yield Record(place, error=f"It does not have the {len(reader.fieldnames or ())} columns of the header.")
            else:
                yield Record(place, "item", {name: _parsed(name, cell) for name, cell in row.items() if cell})


def _parsed(name: str, cell: str) -> Any:
    if name in LISTS:
        return [part.strip() for part in cell.split(";") if part.strip()]
    return int(cell) if name in NUMBERS and cell.isascii() and cell.isdigit() else cell


def _kind_of(fields: dict[str, Any]) -> str:
    return "topic" if "slug" in fields else "course" if "units" in fields else "item"
