import io
import json
import logging
import logging.config
from collections.abc import Iterator

import pytest
import structlog

from apps.common.logs import logging_config


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the JSON configuration writes; the root logger is put back afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logging.config.dictConfig(logging_config("json", "INFO"))
    output = io.StringIO()
    root.handlers[0].setStream(output)
    yield output
    root.handlers[:], root.level = before, level


def test_a_line_says_what_when_where_and_for_whom(lines: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r1", job_id="j1", adapter="a@1"):
        structlog.get_logger("lyo.test").info("answered", tokens=3)
        logging.getLogger("library").warning("took %d s", 2)
    ours, theirs = map(json.loads, lines.getvalue().splitlines())
    context = {"request_id": "r1", "job_id": "j1", "adapter": "a@1"}
    assert ours.items() >= {"event": "answered", "tokens": 3, "level": "info", "logger": "lyo.test", **context}.items()
    assert theirs.items() >= {"event": "took 2 s", "level": "warning", "logger": "library", **context}.items()
    assert ours["timestamp"].endswith("Z")


def test_what_probes_ask_is_not_logged(lines: io.StringIO) -> None:
    for request in ("GET /readyz", "GET /api/v1/me"):
        structlog.get_logger("lyo.test").info("request_started", request=request)
    assert [json.loads(line)["request"] for line in lines.getvalue().splitlines()] == ["GET /api/v1/me"]


def test_an_exception_is_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("library").exception("failed")
    (line,) = lines.getvalue().splitlines()
    assert "ValueError: odd" in json.loads(line)["exception"]


def test_the_level_is_kept(lines: io.StringIO) -> None:
    structlog.get_logger("lyo.test").debug("detail")
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("django.request").warning("Not Found")
    assert lines.getvalue() == ""
