"""Sheets and texts as people send them, and that no spreadsheet runs what goes out."""

import codecs
import zipfile
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import Workbook, load_workbook

from apps.common import sheets
from apps.common.sheets import BadSheet, csv_of, decoded, escaped, is_sheet, sheet_of, utf8_lines, workbook_of

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def workbook(*rows: list[object], more: list[object] | None = None, below: int = 0) -> bytes:
    """A sheet of `rows`, and a second one of the row `more`, after as many empty ones as `below` says."""
    book = Workbook()
    for row in rows:
        book.active.append(row)
    if more:
        second = book.create_sheet("more")
        for column, value in enumerate(more, start=1):
            second.cell(below + 1, column, value)
    target = BytesIO()
    book.save(target)
    return target.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encoding_and_delimiter_are_found_by_looking(encoding: str, delimiter: str) -> None:
    text = f'key{delimiter}title\r\na{delimiter}"Brüche{delimiter} halb"\r\n'
    sheet = sheet_of(text.encode(encoding))
    assert (sheet.columns, sheet.rows) == (["key", "title"], [(2, ["a", f"Brüche{delimiter} halb"])])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lines_of_json_are_read_in_every_encoding(encoding: str) -> None:
    text = '{"a": "ä\u2028b"}\n{"b": 1}\n'
    assert list(utf8_lines(BytesIO(text.encode(encoding)))) == [
        line.encode() for line in ('{"a": "ä\u2028b"}\n', '{"b": 1}\n')
    ]


def test_a_workbook_is_read_whatever_its_cells_hold() -> None:
    sheet = sheet_of(workbook(["key", "n", "yes", "half", None], ["a", 3, True, 0.5], [], ["b"]))
    assert sheet.columns == ["key", "n", "yes", "half"]
    assert sheet.rows == [(2, ["a", "3", "true", "0.5"]), (4, ["b", "", "", ""])]


def with_cell(data: bytes, old: str, new: str) -> bytes:
    """A workbook whose first sheet has other XML at one place."""
    target = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as given, zipfile.ZipFile(target, "w") as made:
        for name in given.namelist():
            part = given.read(name)
            if name.endswith("sheet1.xml"):
                assert part.count(old.encode()) == 1
                part = part.replace(old.encode(), new.encode())
            made.writestr(name, part)
    return target.getvalue()


@pytest.mark.parametrize("cell", ["<f>1+1</f><v />", "<f>1+1</f>", '<f t="shared" si="0" />', '<f t="dataTable" />'])
def test_a_formula_without_its_value_is_refused_by_line_and_column(cell: str) -> None:
    data = with_cell(workbook(["a", "b"], ["x", "=1+1"]), "<f>1+1</f><v />", cell)
    with pytest.raises(BadSheet, match="line 2: column 2 has a formula without its value"):
        sheet_of(data)


@pytest.mark.parametrize(
    ("attributes", "value", "text"),
    [("", "<v>2</v>", "2"), (' t="str"', "<v>two</v>", "two"), (' t="str"', "<v />", "")],
)
def test_a_formula_is_read_as_its_value(attributes: str, value: str, text: str) -> None:
    data = with_cell(workbook(["a", "b"], ["x", "=1+1"]), '"B2"><f>1+1</f><v />', f'"B2"{attributes}><f>1+1</f>{value}')
    assert sheet_of(data).rows == [(2, ["x", text])]


def test_lines_are_those_of_the_file() -> None:
    sheet = sheet_of(b'sep=;\na;b\n"1\n2";x\n;\n3;y\n')
    assert sheet.rows == [(3, ["1\n2", "x"]), (6, ["3", "y"])]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a,b\n1,2\n3,\xff\n", "line 3 is not UTF-8: byte 2 is invalid"),
        ("a,b\né,".encode("latin-1"), "line 2 is not UTF-8: byte 0 is invalid"),
        ("a\nb\n".encode("utf-16") + b"\x00", "line 3 is not UTF-16: byte 0 is invalid"),
        (codecs.BOM_UTF16_LE + "a\nx".encode("utf-16-le") + b"\x00\xdc", "line 2 is not UTF-16: byte 2 is invalid"),
        (b"", "it has no line with the names of columns"),
        (b",,\n\n", "it has no line with the names of columns"),
        (b"a,b,a\n1,2,3\n", "line 1: there are two columns 'a'"),
        (b"a,,b\n1,2,3\n", "line 1: column 2 has no name"),
        (b'a,b\n"1,2\n', "line 2: unexpected end of data"),
        (b"\xd0\xcf\x11\xe0old", "it is an old .xls workbook"),
        (b"PK\x03\x04 not a zip", "cannot be read as an .xlsx workbook"),
        (workbook(["a"], ["x"], more=["b"]), "it has 2 sheets with something in them: keep one"),
        (workbook(["a"], ["x"], more=["b"], below=2000), "it has 2 sheets with something in them: keep one"),
        (workbook(["a"], [None] * 300 + ["far"]), "line 2: it has more than 256 columns"),
    ],
)
def test_what_is_wrong_is_said_by_its_line(data: bytes, words: str) -> None:
    with pytest.raises(BadSheet, match=words.replace(".", r"\.").replace("'", ".")):
        sheet_of(data)


def test_a_workbook_that_grows_when_it_is_unpacked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "UNPACKED", 2**20)
    target = BytesIO(workbook(["a"]))
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/bomb.xml", bytes(2**21))
    with pytest.raises(BadSheet, match="takes more than 1 MiB unpacked"):
        sheet_of(target.getvalue())


def test_a_workbook_with_an_entity_bomb_is_refused() -> None:
    target = BytesIO()
    bomb = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;">]><sst>&c;</sst>'
    with zipfile.ZipFile(BytesIO(workbook(["a"]))) as good, zipfile.ZipFile(target, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, bomb if name.endswith("workbook.xml") else good.read(name))
    with pytest.raises(BadSheet):
        sheet_of(target.getvalue())


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("A.CSV", b"key,title", True),
        ("a.Xlsx", b"PK\x03\x04", True),
        ("a.jsonl", b"PK\x03\x04", True),
        ("a.csv", b'\xef\xbb\xbf{"key": 1}', False),
        ("a.csv", '[{"a": 1}]'.encode("utf-16"), False),
        ("A.JSONL", b"key,title", False),
        ("a", b"key,title", False),
    ],
)
def test_a_sheet_is_known_by_how_it_begins_or_else_by_its_ending(name: str, head: bytes, expected: bool) -> None:
    assert is_sheet(name, head) is expected


FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\nx",
    " =1",
    "\u00a0=1",
    "\uff1d1",
    "\uff0b1",
    "\uff0d1",
    "\uff20x",
    "'=1",
    "''@x",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_begins_as_a_formula_goes_out_as_text_and_comes_back_as_it_was(text: str) -> None:
    assert escaped(text) == f"'{text}"
    assert sheet_of(csv_of(["a", "b"], [[text, "x"]]).encode()).rows == [(2, [text, "x"])]
    packed = workbook_of(["a"], [[text]])
    (cell,) = next(load_workbook(BytesIO(packed)).active.iter_rows(min_row=2))
    assert (cell.data_type, cell.value[0]) == ("s", "'")
    if "\r" not in text:  # which XML has no place for
        assert sheet_of(packed).rows == [(2, [text])]


@pytest.mark.parametrize("text", ["a=b", "1-2", "'quoted'", "x@y.org", "<p>=</p>", ""])
def test_other_text_goes_out_as_it_is(text: str) -> None:
    assert escaped(text) == text


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=3))
def test_every_text_comes_back_as_it_went_out(cells: list[str]) -> None:
    columns = [f"c{number}" for number in range(len(cells))]
    rows = sheet_of(csv_of(columns, [cells]).encode()).rows
    assert [row for _, row in rows] == ([cells] if any(cells) else [])


def test_what_no_cell_holds_is_said_and_not_cut_off() -> None:
    with pytest.raises(BadSheet, match="line 2, column body: no cell holds 40000 characters"):
        workbook_of(["body"], [["x" * 40_000]])
    assert sheet_of(workbook_of(["body"], [["a\x07b"]])).rows == [(2, ["a\ufffdb"])]


def test_decoding_takes_a_mark_away() -> None:
    assert decoded(b"\xef\xbb\xbfa") == "a"
