"""Configures the logs of every process: one JSON object per line, or lines for people.

Callers log ids: prompts, keys and links must never reach a log.
"""

import logging
import os
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which may be replaced after this handler is created."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # like logging's handler of last resort
        return sys.stderr


def configure_logs(level: str, style: str, **always: object) -> None:
    """Send structlog and the standard library's loggers to standard error in one format.

    Every line has the fields `always`.
    """

    def add_fields(_logger: object, _method: str, fields: EventDict) -> EventDict:
        return {**always, **fields}

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_fields,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"))
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
    )
    writer = _StandardError()
    writer.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[writer], force=True)
    # Each of these logs every job or every request at `info`.
    for chatty in ("celery.worker.strategy", "celery.app.trace", "httpx2", "botocore", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
