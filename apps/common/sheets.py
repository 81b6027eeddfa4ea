"""Files as people send them: an .xlsx workbook or text, whose encoding and delimiter are found by looking at it.

Text is UTF-8, UTF-16 or UTF-32, with or without a byte order mark. Nothing is guessed beyond that: a byte that does not
belong there is an error that names its line.
"""

import codecs
import csv
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import IO, Any

from openpyxl import Workbook, load_workbook
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.utils.exceptions import InvalidFileException
from openpyxl.worksheet._reader import FORMULA_TAG, VALUE_TAG, WorkSheetParser

csv.field_size_limit(10_000_000)  # the form of what is read says how long a cell may be

BOMS = (  # the longer first: that of UTF-32 begins as that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
ZEROS = {  # which of the first four bytes are 0, where the text begins with two letters or signs of ASCII
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
}
WORKBOOK, OLD_WORKBOOK = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
DELIMITERS = ",;\t"
SEPARATOR = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # Excel's own first line
UNPACKED = 64 * 2**20  # bytes of a workbook: it is a .zip
COLUMNS = 256
CELL = 32_767  # characters of a workbook's cell
UNKNOWN = object()  # the value of a formula that no program has worked out
# What spreadsheets take for a formula, also behind what they skip, and in the wide forms of East Asia.
FORMULA = re.compile("'*(?:[\t\r\n]|[\\s\ufeff\u200b]*[=+\\-@\uff1d\uff0b\uff0d\uff20])")
ESCAPED = re.compile(f"'(?={FORMULA.pattern})")


class BadSheet(ValueError):
    """What is wrong with a file, by its line, for those who made it."""


@dataclass(frozen=True)
class Sheet:
    """rows: the line of each in the file, and its cells, as many as there are names of columns unless it is ragged."""

    columns: list[str]
    rows: list[tuple[int, list[str]]]

    def records(self) -> Iterator[tuple[int, dict[str, str] | None]]:
        """Each row by its columns; None where it has more or fewer cells than there are of them."""
        for line, cells in self.rows:
            yield line, dict(zip(self.columns, cells, strict=True)) if len(cells) == len(self.columns) else None


# --- text ---


def encoding_of(head: bytes) -> tuple[str, int]:
    """The encoding of a text that begins so, and how many bytes its mark takes."""
    for mark, encoding in BOMS:
        if head.startswith(mark):
            return encoding, len(mark)
    zeros = tuple(byte == 0 for byte in head[:4])
    return ZEROS.get(zeros, "utf-8"), 0  # type: ignore[arg-type]  # a shorter tuple is not there


def decoded(data: bytes) -> str:
    """Raises `BadSheet` for a byte that does not belong to the encoding."""
    encoding, mark = encoding_of(data[:4])
    try:
        return data[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        before = data[mark : mark + error.start].decode(encoding, "ignore")
        line = before.count("\n") + 1
        place = error.start - len(before[: before.rfind("\n") + 1].encode(encoding))
        name = encoding.upper().removesuffix("-LE").removesuffix("-BE")
        raise BadSheet(f"line {line} is not {name}: byte {place} is invalid") from error


def utf8_lines(stream: IO[bytes]) -> IO[bytes]:
    """The stream from its beginning, to be read line by line, as UTF-8 without a mark; whether that is valid, who reads
    it finds out. Raises `BadSheet` for what is in another encoding, and broken."""
    stream.seek(0)
    encoding, mark = encoding_of(stream.read(4))
    if encoding == "utf-8":
        stream.seek(mark)
        return stream
    stream.seek(0)
    return BytesIO(decoded(stream.read()).encode("utf-8", "surrogatepass"))


# --- sheets ---


def is_sheet(name: str, head: bytes) -> bool:
    """Whether a file is a sheet, by how it begins, or else by its ending; other text is JSON, line by line."""
    if head.startswith((WORKBOOK, OLD_WORKBOOK)):
        return True
    encoding, mark = encoding_of(head[:4])
    begins_with_json = head[mark:].decode(encoding, "ignore").lstrip().startswith(("{", "["))
    return name.lower().endswith((".csv", ".tsv", ".xlsx")) and not begins_with_json


def sheet_of(data: bytes) -> Sheet:
    """Raises `BadSheet`. Empty rows are passed over; what was escaped by `escaped` is as it was."""
    if data.startswith(OLD_WORKBOOK):
        raise BadSheet("it is an old .xls workbook: save it as .xlsx or as CSV")
    rows = _workbook_rows(data) if data.startswith(WORKBOOK) else _text_rows(decoded(data))
    filled = ((line, _storable(line, cells)) for line, cells in rows if any(cell.strip() for cell in cells))
    first = next(filled, None)
    if first is None:
        raise BadSheet("it has no line with the names of columns")
    line, header = first
    columns = [name.strip() for name in header]
    while not columns[-1]:
        columns.pop()
    for place, name in enumerate(columns):
        if not name:
            raise BadSheet(f"line {line}: column {place + 1} has no name")
        if name in columns[:place]:
            raise BadSheet(f"line {line}: there are two columns {name!r}")
    padded = data.startswith(WORKBOOK)  # which does not tell where a row ends
    return Sheet(columns, [(line, _trimmed(cells, len(columns), padded)) for line, cells in filled])


def _storable(line: int, cells: list[str]) -> list[str]:
    for place, cell in enumerate(cells, start=1):
        if "\0" in cell:
            raise BadSheet(f"line {line}: column {place} has a NUL character")
    return cells


def _trimmed(cells: list[str], count: int, padded: bool) -> list[str]:
    while len(cells) > count and not cells[-1]:
        cells.pop()
    if padded:
        cells += [""] * (count - len(cells))
    return [ESCAPED.sub("", cell, count=1) if cell.startswith("'") else cell for cell in cells]


def _text_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    skipped, delimiter = 0, ""
    if own := SEPARATOR.match(text):
        skipped, delimiter, text = 1, own[1], text[own.end() :]
    if not delimiter:
        first = next((line for line in text.splitlines() if line.strip()), "")
        unquoted = re.sub(r'"[^"]*"', "", first)
        delimiter = max(DELIMITERS, key=unquoted.count)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = skipped + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadSheet(f"line {line}: {error}") from error
        if cells is None:
            return
        yield line, cells


def _workbook_rows(data: bytes) -> Iterator[tuple[int, list[str]]]:
    try:
        with zipfile.ZipFile(BytesIO(data)) as packed:
            if sum(info.file_size for info in packed.infolist()) > UNPACKED:
                raise BadSheet(f"its workbook takes more than {UNPACKED // 2**20} MiB unpacked")
        book = load_workbook(BytesIO(data), read_only=True, data_only=True)
        sheets = [sheet for sheet in book.worksheets if _is_filled(sheet)]
        if len(sheets) > 1:
            raise BadSheet(f"it has {len(sheets)} sheets with something in them: keep one")
        for sheet in sheets:
            for line, row in _rows(sheet):
                if UNKNOWN in row:
                    raise BadSheet(
                        f"line {line}: column {row.index(UNKNOWN) + 1} has a formula without its value: "
                        "open the workbook in a spreadsheet program and save it"
                    )
                yield line, [_cell_text(value) for value in row]
    except BadSheet:
        raise
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, SyntaxError) as error:
        raise BadSheet(f"it cannot be read as an .xlsx workbook: {error}") from error


class _Parser(WorkSheetParser):
    def parse_cell(self, element: Any) -> dict[str, Any]:
        """Set the value to `UNKNOWN` where openpyxl takes a formula without one for an empty cell."""
        cell: dict[str, Any] = super().parse_cell(element)
        if cell["value"] is None and element.find(FORMULA_TAG) is not None:
            is_empty_text = element.get("t") == "str" and element.find(VALUE_TAG) is not None
            cell["value"] = None if is_empty_text else UNKNOWN
        return cell


def _rows(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """The rows that the file has, by their lines; what it says of the sheet's size is not read."""
    book = sheet.parent
    with sheet._get_source() as source:
        formats = (book._date_formats, book._timedelta_formats)
        for line, cells in _Parser(source, sheet._shared_strings, True, book.epoch, *formats).parse():
            values = {cell["column"]: cell["value"] for cell in cells}
            width = max(values, default=0)
            if width > COLUMNS:
                raise BadSheet(f"line {line}: it has more than {COLUMNS} columns")
            yield line, [values.get(column) for column in range(1, width + 1)]


def _is_filled(sheet: Any) -> bool:
    return any(value is not None for _, row in _rows(sheet) for value in row)


def _cell_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


# --- going out ---


def escaped(value: Any) -> str:
    """A cell as text that no spreadsheet takes for a formula; `sheet_of` takes the escape back."""
    text = "" if value is None else str(value)
    return f"'{text}" if FORMULA.match(text) else text


def csv_of(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    target = StringIO(newline="")
    csv.writer(target).writerows([map(escaped, columns), *(map(escaped, row) for row in rows)])
    return target.getvalue()


def workbook_of(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    """Raises `BadSheet` for a text that no cell holds; characters that no workbook holds are marked as missing."""
    columns = list(columns)
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    for line, row in enumerate([columns, *rows], start=1):
        cells = [ILLEGAL_CHARACTERS_RE.sub("\ufffd", escaped(value)) for value in row]
        for name, cell in zip(columns, cells, strict=True):
            if len(cell) > CELL:
                raise BadSheet(f"line {line}, column {name}: no cell holds {len(cell)} characters: export it as CSV")
        sheet.append(cells)
    target = BytesIO()
    book.save(target)
    return target.getvalue()
