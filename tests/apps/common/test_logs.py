import io
import json
import logging
import logging.config
from collections.abc import Iterator

import pytest
import structlog
from celery import shared_task
from celery.app.trace import build_tracer
from django.db import DataError, OperationalError, connection, transaction
from django.test import Client
from pytest_django import Settings

from apps.common.logs import logging_config
from lyo.celery import app


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
        raise ConnectionRefusedError("odd")
    except ConnectionRefusedError:
        logging.getLogger("library").exception("failed")
    (line,) = lines.getvalue().splitlines()
    assert json.loads(line)["exception"].endswith("ConnectionRefusedError: odd")
    assert "test_logs.py" in json.loads(line)["exception"]


def test_the_level_is_kept(lines: io.StringIO) -> None:
    structlog.get_logger("lyo.test").debug("detail")
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("django.request").warning("Not Found")
    assert lines.getvalue() == ""


# --- what people wrote ---

SECRET = "my-mother-is-ill"


@pytest.mark.django_db
def test_a_query_is_not_logged(lines: io.StringIO, client: Client) -> None:
    client.get(f"/api/v1/search?q={SECRET}&token={SECRET}", headers={"Authorization": f"Bearer {SECRET}"})
    client.get(f"/livez/nowhere?{SECRET}")
    requests = [json.loads(line)["request"] for line in lines.getvalue().splitlines()]
    assert requests == ["GET /api/v1/search"] * 2 + ["GET /livez/nowhere"] * 2
    assert SECRET not in lines.getvalue()


@pytest.mark.django_db
def test_the_address_in_a_log_is_the_one_that_a_trusted_proxy_saw(
    lines: io.StringIO, client: Client, settings: Settings
) -> None:
    headers = {"X-Forwarded-For": "1.2.3.4", "X-Real-IP": "5.6.7.8", "Forwarded": "for=9.9.9.9"}
    client.get("/api/v1/me", headers=headers, REMOTE_ADDR="10.0.0.1")
    settings.TRUSTED_PROXIES = 1
    client.get("/api/v1/me", headers=headers, REMOTE_ADDR="10.0.0.1")
    assert [json.loads(line)["ip"] for line in lines.getvalue().splitlines()] == ["10.0.0.1"] * 2 + ["1.2.3.4"] * 2


def raising(error: Exception) -> None:
    try:
        try:
            int(SECRET)
        except ValueError:
            raise error  # noqa: B904 - the context is what is tried
    except Exception:
        structlog.get_logger("lyo.test").exception("failed", error=error)
        logging.getLogger("library").exception("failed: %s, %r", error, error)


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("kind", [ValueError, KeyError, DataError])
def test_the_texts_of_exceptions_are_not_logged_but_where_they_came_from_is(
    lines: io.StringIO, kind: type[Exception], log_format: str
) -> None:
    logging.config.dictConfig(logging_config(log_format, "DEBUG"))
    logging.getLogger().handlers[0].setStream(lines)
    raising(kind(SECRET))
    assert SECRET not in lines.getvalue()
    assert lines.getvalue().count("in raising") == 4  # of two lines, each with what was raised and its context
    assert kind.__name__ in lines.getvalue()


def test_of_a_servers_failure_the_first_line_is_logged(lines: io.StringIO) -> None:
    raising(OperationalError(f"the connection is lost\nLINE 1: SELECT '{SECRET}'"))
    assert SECRET not in lines.getvalue()
    assert "OperationalError: the connection is lost" in lines.getvalue()


@pytest.mark.django_db
def test_what_a_statement_was_given_is_not_logged(lines: io.StringIO) -> None:
    with connection.cursor() as cursor, pytest.raises(DataError), transaction.atomic():
        try:
            cursor.execute("SELECT %s::uuid", [SECRET])
        except DataError:
            logging.getLogger("django").exception("failed")
            raise
    assert "InvalidTextRepresentation" in lines.getvalue()
    assert SECRET not in lines.getvalue()


@shared_task(name="tests.fails")
def fails(word: str) -> None:
    raise ValueError(word)


def test_a_failed_task_is_logged_without_its_arguments(lines: io.StringIO) -> None:
    build_tracer(fails.name, fails, app=app, eager=False)("the-id", (SECRET,), {}, {"id": "the-id"})
    (line,) = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert (line["event"], line["task"], line["task_id"]) == ("task failed", "tests.fails", "the-id")
    assert "in fails" in line["exception"]
    assert SECRET not in lines.getvalue()


def test_no_library_tells_bodies_or_parameters_at_any_level(lines: io.StringIO) -> None:
    logging.config.dictConfig(logging_config("json", "DEBUG"))
    for name in ("django.db.backends", "httpcore.http11", "botocore.endpoint", "urllib3.connectionpool"):
        assert not logging.getLogger(name).isEnabledFor(logging.DEBUG)
