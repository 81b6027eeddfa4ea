import json
import re
from math import isfinite
from typing import Any, NoReturn

from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser

MAX_DEPTH = 64  # of nested lists and objects; nothing in the API comes near
# Every escape: surrogate pairs and escaped backslashes are passed over, the group is what Postgres cannot store.
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u(0000|[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)


class StrictJSONParser(JSONParser):
    """JSON as RFC 8259 has it, in UTF-8, and nothing that could not be stored or sent back.

    Refuses NaN and infinities, NUL characters, lone surrogates and absurd nesting, and says where.
    """

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        return loads(parser_context["request"].body)  # reading `stream` would pass DATA_UPLOAD_MAX_MEMORY_SIZE by


class _Repeated(Exception):
    """An object has a name twice."""


def loads(body: bytes, name: str = "The body", unique: bool = False) -> Any:
    """Parse strictly; raises `ParseError`, which says of `name` what is wrong with it.

    unique: refuse objects that have a name twice, of which JSON's readers keep the last.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ParseError(f"{name} is not UTF-8: byte {error.start} is invalid.") from error
    try:
        pairs = _unique if unique else None
        value = json.loads(text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=pairs)
    except _Repeated as error:
        raise ParseError(f'{name} has "{str(error)[:50]}" twice in an object.') from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise ParseError(f"{name} is not JSON: {error.msg} at {place}.") from error
    except RecursionError:
        _refuse_depth(name)
    except ValueError as error:  # from _finite, or an integer of more digits than Python converts
        raise ParseError(f"{name} has a number out of range: {error}.") from error
    for escape in _ESCAPE.finditer(text):
        if escape[1]:
            what = "NUL character" if escape[1] == "0000" else "lone surrogate"
            raise ParseError(f"{name} has a {what} at character {escape.start()}.")
    layer = [value]
    for _ in range(MAX_DEPTH):
        layer = [inner for outer in layer for inner in _children(outer)]
    if any(map(_children, layer)):
        _refuse_depth(name)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Repeated(name)
        found[name] = value
    return found


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _finite(number: str) -> float:
    value = float(number)
    if not isfinite(value):
        raise ValueError(number[:20])
    return value


def _refuse_depth(name: str) -> NoReturn:
    raise ParseError(f"{name} is nested more than {MAX_DEPTH} levels deep.")
