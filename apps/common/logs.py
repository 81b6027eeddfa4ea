"""Structured logs: one event a line, with what the context has bound (request, user, job and adapter ids)."""

import logging
from typing import Any

import structlog

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
    render: list[structlog.types.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
        if log_format == "json"
        else [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    )
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
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "structured"}},
        "root": {"handlers": ["console"], "level": level},
        "loggers": {
            "django": {"handlers": [], "propagate": True},
            # Three lines a second of beat's errands; what a job does is logged with its id by the worker.
            "django.security.DisallowedHost": {"level": "CRITICAL"},  # any scanner sends foreign names
            "celery.beat": {"level": "WARNING"},
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
            "httpx": {"level": "WARNING"},  # a line for every request to a model server
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
