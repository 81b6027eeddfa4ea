import pytest
from rest_framework.exceptions import ParseError

from apps.common.parsers import MAX_DEPTH, _Repeated, _unique, loads


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, true, null]}', {"a": [1, 2.5, True, None]}),
        ('"Größe 🙂"'.encode(), "Größe 🙂"),
        (rb'"\ud83d\ude42"', "🙂"),  # a pair is one character
        (rb'"\\u0000 \\ud800 \u0041"', r"\u0000 \ud800 A"),  # escaped backslashes, not escapes
        (b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH, None),
    ],
)
def test_json_is_parsed(body: bytes, value: object) -> None:
    parsed = loads(body)
    assert value is None or parsed == value


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"{", "at column 2"),
        (b'{"a": 1,\n "b" 2}', "line 2, column 6"),
        (b"", "at column 1"),
        (b'{"a": "\xff"}', "byte 7"),
        (b'{"a": "tab\there"}', "Invalid control character"),
        (b'{"a": NaN}', "number out of range: NaN"),
        (b'{"a": -Infinity}', "number out of range: -Infinity"),
        (b'{"a": 1e999}', "number out of range: 1e999"),
        (b"9" * 5000, "number out of range"),
        (rb'{"a": "\u0000"}', "NUL character at character 7"),
        (rb'{"\u0000": 1}', "NUL character at character 2"),
        (rb'"\\\u0000"', "NUL character at character 3"),
        (rb'"\ud800"', "lone surrogate at character 1"),
        (rb'"\udc00\ud800"', "lone surrogate at character 1"),
        (rb'"\ud83d\ud83d\ude42"', "lone surrogate at character 1"),
        (rb'"\\\udc00"', "lone surrogate at character 3"),
        (b"[" * (MAX_DEPTH + 1) + b"1" + b"]" * (MAX_DEPTH + 1), "nested more than"),
        (b'{"a":' * 100_000, "nested more than"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(body: bytes, complaint: str) -> None:
    with pytest.raises(ParseError, match=complaint):
        loads(body)


def test_a_name_that_is_there_twice_is_found_without_comparing_each_with_all() -> None:
    compared = []

    class Name(str):
        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return super().__eq__(other)

        __hash__ = str.__hash__

    names = [Name(f"name {number}") for number in range(1000)]
    with pytest.raises(_Repeated, match="name 999"):
        _unique([(name, 1) for name in [*names, Name("name 999")]])
    assert len(compared) <= len(names)
