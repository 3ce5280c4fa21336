"""Structured logs: JSON for machines, text for people; never a prompt or an output."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

#: Applied to each line, ours or a library's, before it is rendered.
_PROCESSORS: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def configure_logging(level: str, log_format: str, stream: TextIO | None = None) -> None:
    """Send all logs of this process, including those of libraries, to one stream in one format.

    Args:
        level: name of the lowest level that is written.
        log_format: `json`, `text`, or `auto`: text on a terminal, otherwise JSON.
        stream: the target; stderr by default.
    """
    stream = sys.stderr if stream is None else stream
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_PROCESSORS,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(allow=["phase"]), *_PROCESSORS],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _renderer(log_format, stream),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # The first logs the repr of each result, which is output text; the second a line per message.
    # We log jobs ourselves.
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)


def _renderer(log_format: str, stream: TextIO) -> Any:
    is_terminal = stream.isatty()
    if log_format == "json" or (log_format == "auto" and not is_terminal):
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=is_terminal)
