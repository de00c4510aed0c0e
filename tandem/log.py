"""Logs of every role: one line an event on stderr, the same from our modules and from libraries.

`json` is for machines: one object a line, with `time`, `level`, `role`, `logger`, `event`, `exception`, and with `call`
and `trace` where it is about one. Tracebacks are plain: the values of variables, secrets among them, are never shown.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.types import EventDict, Processor

from calls.log_context import call_of

LOUD_LIBRARIES = ("websockets", "uvicorn", "alembic", "httpx", "asyncio", "huggingface_hub", "aioice",
                  "aiortc")

Format = Literal["text", "json"]


def configure(role: str, level: str, format: Format = "text") -> None:
    """Send all logging of this process to stderr, with the role's name on each line."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", key="time", utc=True) if format == "json" else
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.PositionalArgumentsFormatter(),
                    structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=_as_json(role) if format == "json" else _as_text(role)))
    handler.addFilter(_note_call)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for library in LOUD_LIBRARIES:
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))


def _note_call(record: logging.LogRecord) -> bool:
    """While the line's arguments are still apart from it."""
    record.call = call_of(record)
    return True


def _as_text(role: str) -> list[Processor]:
    def with_role(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["event"] = f"{role:8} {event['event']}"
        del event["logger"]
        return event

    return [structlog.stdlib.ProcessorFormatter.remove_processors_meta, with_role,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0,
                                          exception_formatter=structlog.dev.plain_traceback)]


def _as_json(role: str) -> list[Processor]:
    def about(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["role"] = role
        if event["_record"].call:
            event["call"] = event["_record"].call
        return event

    return [about, structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
