"""Logs of every role: one line an event on stderr, the same from our modules and from libraries."""

from __future__ import annotations

import logging
import sys

import structlog

LOUD_LIBRARIES = ("websockets", "uvicorn", "alembic", "httpx", "asyncio", "huggingface_hub", "aioice",
                  "aiortc")


def configure(role: str, level: str) -> None:
    """Send all logging of this process to stderr, with the role's name on each line."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.PositionalArgumentsFormatter(),
                    structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True)

    def with_role(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event["event"] = f"{role:8} {event['event']}"
        return event

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, with_role,
                    structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for library in LOUD_LIBRARIES:
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
