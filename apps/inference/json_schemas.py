"""Whether a JSON schema that somebody sent can be followed, found out at a bounded cost.

First its form is looked at. Then a process of its own compiles it, with a bound on time and memory: whatever a schema
does to the compiler, it does there. llguidance's own limits bound all that is known but `multipleOf`, whose cost is
linear in the values' common multiple.
"""

import math
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from threading import BoundedSemaphore, Lock
from typing import Any
from weakref import WeakValueDictionary

import structlog

from apps.common.errors import ServiceUnavailable, TooManyRequests
from apps.common.streaming import release_connection
from lyo import env

MAX_DEPTH = 64  # of values within values
MAX_PROPERTIES = 400  # of one object: those that may be left out can all come next, and the parser follows 2,000 things
MAX_COMMON_MULTIPLE = 10_000  # of all values of `multipleOf`, in steps of the finest one's last digit
MAX_PATTERN_LENGTH = 1000
MAX_REPEATS = 10_000  # of a part of a pattern, nested counts multiplied; and what `min…` may demand
MAX_POINTER_LENGTH = 200
TRIAL_WAIT_S = 15.0  # on a busy machine; the trial itself takes a fifth of a second of processor time
TRIALS_AT_ONCE = 2
TURN_WAIT_S = 5.0

logger = structlog.get_logger(__name__)

NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}  # their keys are no keywords
DATA = {"const", "enum", "default", "examples"}
DEMANDS = ("minLength", "minItems", "minProperties", "minContains")
# Possessive, so that what is never closed is read once.
PATTERN_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]?|\{(?P<least>\d++)(?:,(?P<most>\d*+))?\}|.", re.DOTALL)

_trials = BoundedSemaphore(TRIALS_AT_ONCE)
_turns: WeakValueDictionary[Any, Lock] = WeakValueDictionary()  # of users who wait for a compiler


def schema_fault(schema: dict[str, Any], text: str, *, user_id: Any) -> str | None:
    """What is wrong with a JSON schema, or costs too much, or is not supported; None where it can be followed.

    `text` is the schema as compact JSON. Each user's schemas are compiled one after another. Raises `TooManyRequests`
    where others of the user take too long, and `ServiceUnavailable` where the machine is too busy to tell.
    """
    if fault := form_fault(schema):
        return fault
    release_connection()  # others need it more than who waits for a compiler
    turn = _turns.setdefault(user_id, Lock())
    if not turn.acquire(timeout=TURN_WAIT_S):
        raise TooManyRequests("Other schemas of yours are being compiled.", wait=TURN_WAIT_S)
    try:
        return compile_fault(text)
    finally:
        turn.release()


# --- its form ---


def form_fault(schema: dict[str, Any]) -> str | None:
    """The first bound that the schema passes, and where, as a JSON pointer."""
    multiples: list[Decimal] = []
    for pointer, depth, subschema in _subschemas(schema):
        if depth > MAX_DEPTH:
            return f"{_place(pointer)}: more than {MAX_DEPTH} levels deep."
        for keyword, value in subschema.items():
            at = _place(f"{pointer}/{keyword}")
            if keyword == "properties" and isinstance(value, dict) and len(value) > MAX_PROPERTIES:
                return f"{at}: {len(value)} properties, of at most {MAX_PROPERTIES}."
            if keyword in DEMANDS and _is_positive(value) and value > MAX_REPEATS:
                return f"{at}: must be at most {MAX_REPEATS}."
            if keyword == "multipleOf" and _is_positive(value):
                if value > MAX_COMMON_MULTIPLE:
                    return f"{at}: must be at most {MAX_COMMON_MULTIPLE}."
                multiples.append(Decimal(str(value)))
                if (common := _common_multiple(multiples)) > MAX_COMMON_MULTIPLE:
                    return f"{at}: the common multiple of these numbers is {common}, of at most {MAX_COMMON_MULTIPLE}."
            patterns = value if keyword == "patternProperties" and isinstance(value, dict) else ()
            for pattern in (value,) if keyword == "pattern" and isinstance(value, str) else patterns:
                if len(pattern) > MAX_PATTERN_LENGTH:
                    return f"{at}: a pattern of {len(pattern)} characters, of at most {MAX_PATTERN_LENGTH}."
                if (repeats := pattern_repeats(pattern)) > MAX_REPEATS:
                    return f"{at}: a part of the pattern repeats {repeats} times, of at most {MAX_REPEATS}."
    return None


def pattern_repeats(pattern: str) -> int:
    """How often a part of a regular expression may repeat by its counts; those of nested groups multiply."""
    groups = [1]  # of each open group, the most within it
    last = 1  # of what a count would repeat
    for part in PATTERN_PART.finditer(pattern):
        if part["least"] is not None:
            last *= max(1, *(int(count) for count in part.groups() if count))
        elif part[0] == "(":
            groups.append(1)
            continue
        elif part[0] == ")" and len(groups) > 1:
            last = groups.pop()
        else:
            last = 1
        groups[-1] = max(groups[-1], last)
    return max(groups)


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Every object that may be read as a schema, with its JSON pointer and depth."""
    waiting: deque[tuple[str, int, Any]] = deque([("#", 0, schema)])
    while waiting:
        pointer, depth, value = waiting.popleft()
        if isinstance(value, list):
            waiting += [(f"{pointer}/{index}", depth + 1, item) for index, item in enumerate(value)]
        elif isinstance(value, dict):
            yield pointer, depth, value
            for keyword, inner in value.items():
                if keyword in NAMED and isinstance(inner, dict):
                    waiting += [(f"{pointer}/{keyword}/{name}", depth + 2, item) for name, item in inner.items()]
                elif keyword not in DATA:
                    waiting.append((f"{pointer}/{keyword}", depth + 1, inner))


def _place(pointer: str) -> str:
    return f"At {pointer}" if len(pointer) <= MAX_POINTER_LENGTH else f"At {pointer[:MAX_POINTER_LENGTH]}…"


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _common_multiple(numbers: list[Decimal]) -> int:
    """In units of the finest number's last digit."""
    finest = min(0, *(int(number.normalize().as_tuple().exponent) for number in numbers))
    return math.lcm(*(int(number.scaleb(-finest)) for number in numbers))


# --- its cost ---


@lru_cache(maxsize=256)
def compile_fault(text: str) -> str | None:
    """What the compiler says against a schema, in a process that is stopped where it takes too much."""
    if not _trials.acquire(timeout=TURN_WAIT_S):
        raise ServiceUnavailable("Too many schemas are being compiled.")
    try:
        trial = subprocess.run(
            [sys.executable, "-m", "apps.inference.schema_trial"],
            input=text.encode(),
            capture_output=True,
            timeout=TRIAL_WAIT_S,
            cwd=env.BASE_DIR,
        )
    except subprocess.TimeoutExpired:
        raise ServiceUnavailable("The schema could not be compiled in time.") from None
    finally:
        _trials.release()
    if trial.returncode > 0:  # a panic, or a bug of ours: no stop by the system
        logger.error("the trial of a schema failed", error=trial.stderr.decode(errors="replace")[-500:])
    if trial.returncode:
        return "The schema costs too much to follow: make it smaller, or demand less."
    return trial.stdout.decode(errors="replace") or None
