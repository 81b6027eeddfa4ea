"""Patterns of modules' names that come from outside, matched as PEFT matches them but never for long.

PEFT has Python's `re` match them, whose time may be exponential in a name's length. RE2's is linear; what it does not
know, look-around and references back, is refused. How large a pattern may grow and how many there may be is bounded.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import re2

PLAIN = re.compile(r"[\w.-]*")  # a name, or the end of one, to every reader of patterns
MAX_PATTERNS = 2048
MAX_LENGTH = 4096
MEMORY = 2**18  # bytes of a compiled pattern
BUDGET_S = 10.0  # of a processor, for all names together

OPTIONS = re2.Options()
OPTIONS.max_mem = MEMORY
OPTIONS.log_errors = False


class Patterns:
    """Values by patterns of modules' names, as `rank_pattern` and `alpha_pattern` are."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Raises `ValueError` or `TypeError` for what is no mapping of patterns that can be matched."""
        if not isinstance(values, Mapping):
            raise TypeError(f"it is {values!r:.50}, not an object")
        if len(values) > MAX_PATTERNS:
            raise ValueError(f"it has {len(values)} patterns, at most {MAX_PATTERNS} are matched")
        self._found = [(_matcher(pattern), value) for pattern, value in values.items()]
        self._left = BUDGET_S

    def of(self, name: str, default: Any = None) -> Any:
        """The value of the first pattern that matches the end of the name."""
        began = time.thread_time()
        value = next((value for matches, value in self._found if matches(name)), default)
        self._left -= time.thread_time() - began
        if self._left < 0:
            raise ValueError("its patterns take too long to match")
        return value


def _matcher(pattern: str) -> Callable[[str], Any]:
    if PLAIN.fullmatch(pattern):
        return partial(_ends_with, _parts(pattern), len(pattern))  # many times sooner than RE2
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"a pattern has {len(pattern)} characters, at most {MAX_LENGTH} are matched")
    try:
        matcher: Callable[[str], Any] = re2.compile(rf"(.*\.)?({pattern})$", OPTIONS).match
    except re2.error as error:
        raise ValueError(f"pattern {pattern[:50]!r} cannot be matched in linear time: {_text(error)}") from error
    return matcher


def _ends_with(parts: list[tuple[int, str]], length: int, name: str) -> bool:
    """As a pattern matches whose only sign is the dot, for any character: below a dot, or the whole of the name.

    parts: what is between its dots, and where, the last first.
    """
    start = len(name) - length
    if start < 0 or (start and name[start - 1] != "."):
        return False
    return all(name.startswith(part, start + place) for place, part in parts)


def _parts(pattern: str) -> list[tuple[int, str]]:
    parts, place = [], 0
    for part in pattern.split("."):
        parts.append((place, part))
        place += len(part) + 1
    return parts[::-1]


def _text(error: Exception) -> str:
    detail = error.args[0] if error.args else ""
    return detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)


def plain_config(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """An adapter's settings with the names of its `modules` in the place of patterns: whoever reads them later, with
    whatever matcher, has nothing to match. Settings of plain names stay as they are."""
    plain = dict(config)
    for name, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        if not all(map(_is_plain, config.get(name) or {})):
            patterns = Patterns(config[name])
            values = {module: patterns.of(module, config[default]) for module in modules}
            plain[name] = {module: value for module, value in values.items() if value != config[default]}
    chosen = ("target_modules", "exclude_modules", "layers_pattern")
    if any(isinstance(config.get(name), str) for name in chosen) or not all(
        _is_plain(part) for name in chosen for part in config.get(name) or ()
    ):
        plain["target_modules"] = list(modules)
        for name in ("exclude_modules", "layers_pattern", "layers_to_transform"):
            if name in plain:
                plain[name] = None
    return plain


def _is_plain(part: Any) -> bool:
    return isinstance(part, str) and PLAIN.fullmatch(part) is not None
