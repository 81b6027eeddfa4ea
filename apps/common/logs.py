"""Structured logs: one event a line, with what the context has bound (request, user, job and adapter ids).

No line has what people wrote: no query, no prompt, no token. So of an exception it is told what it is and where it
came from, and its text only where that cannot be somebody's.
"""

import logging
import traceback
from types import TracebackType
from typing import Any

import psycopg
import redis.exceptions
import structlog
from django.db import InterfaceError, OperationalError
from kombu.exceptions import OperationalError as BrokerError

# Of servers, files and our own code; others say what they could not read, convert or find, and that may be anybody's.
TELLING = (
    *(OperationalError, InterfaceError, psycopg.OperationalError, BrokerError),
    *(redis.exceptions.ConnectionError, redis.exceptions.TimeoutError),
    *(OSError, ImportError, AttributeError, NameError, TypeError, IndexError, ArithmeticError, MemoryError),
    *(RuntimeError, AssertionError),
)
PROBES = ("GET /livez", "GET /readyz", "GET /metrics")


def logging_config(log_format: str, level: str) -> dict[str, Any]:
    """Configure structlog, and return Django's LOGGING, which gives the standard library's loggers the same form.

    `log_format` is "json" or "console". Celery keeps this configuration: `worker_hijack_root_logger` is off.
    """
    about: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        without_texts,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            without_probes,
            *about,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    logging.captureWarnings(True)
    render: list[structlog.types.Processor] = [
        structlog.processors.ExceptionRenderer(exception_places),
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False),
    ]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "structured": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": about,
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
            }
        },
        "filters": {"without_texts": {"()": ArgumentFilter}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "structured", "filters": ["without_texts"]}
        },
        "root": {"handlers": ["console"], "level": level},
        "loggers": {
            "django": {"handlers": [], "propagate": True},
            # Three lines a second of beat's errands; what a job does is logged with its id by the worker.
            "django.security.DisallowedHost": {"level": "CRITICAL"},  # any scanner sends foreign names
            "celery.beat": {"level": "WARNING"},
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "CRITICAL"},  # `lyo.celery` tells of failures, without arguments and texts
            "httpx": {"level": "WARNING"},  # a line for every request to a model server
            # What they say at DEBUG has parameters of statements, headers or bodies.
            **{name: {"level": "WARNING"} for name in ("django.db.backends", "httpcore", "botocore", "urllib3")},
            "uvicorn": {"handlers": [], "propagate": True},
            # Requests, refusals and failures are told by django_structlog's middleware.
            "uvicorn.access": {"handlers": [], "propagate": False},
            "django.request": {"level": "CRITICAL"},
        },
    }


def without_probes(_: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Leave out what monitoring asks every few seconds."""
    if str(event.get("request", "")) in PROBES:
        raise structlog.DropEvent
    return event


def said(error: BaseException) -> str:
    """What an exception is and, where that cannot be what somebody wrote, its first line."""
    text = str(error).partition("\n")[0] if isinstance(error, TELLING) else ""
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__


def exception_places(exc_info: Any) -> str:
    """Where an exception came from, and those behind it, the first cause first, each as `said` has it."""
    error: BaseException | None = exc_info[1]
    trace: TracebackType | None = exc_info[2]
    told: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        told.append("".join(traceback.format_tb(trace)) + said(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        trace = error.__traceback__ if error else None
    return "\n\n".join(reversed(told))


def without_texts(_: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Tell of exceptions among the values as `said` does, and leave out the object that asyncio adds, which has one."""
    for name, value in event.items():
        if isinstance(value, BaseException) and name != "exc_info":
            event[name] = said(value)
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event


class ArgumentFilter(logging.Filter):
    """Does the same for the arguments of libraries' messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(said(value) if isinstance(value, BaseException) else value for value in record.args)
        return True
