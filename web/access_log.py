"""One log line and one measurement for each request, under a request id that the client can quote.

Logs carry the route, never the address with its query, and neither prompts nor keys.
"""

import logging
import re
import sys
import time

import structlog
from flask import Flask, Response, g, request

from storage.identifiers import new_id
from web.metrics import Metrics

log = structlog.get_logger()

HEADER = "X-Request-ID"
_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def configure_logs(level: str, log_format: str) -> None:
    """JSON lines (or a console's) on standard error, unless this process has decided already."""
    if structlog.is_configured():
        return
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


def register_access_log(app: Flask, metrics: Metrics) -> None:
    """Give every request an id, and log and measure its answer."""

    @app.before_request
    def begin() -> None:
        given = request.headers.get(HEADER, "")
        g.request_id = given if _GOOD_ID.fullmatch(given) else new_id("req")
        g.began = time.perf_counter()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    def end(response: Response) -> Response:
        seconds = time.perf_counter() - g.get("began", time.perf_counter())
        response.headers[HEADER] = g.get("request_id", "")
        route = request.url_rule.rule if request.url_rule else "none"
        method = request.method if request.method in _METHODS else "other"
        metrics.requests.labels(method, route, response.status_code).inc()
        metrics.request_seconds.labels(method, route).observe(seconds)
        principal = g.get("principal")
        log.info(
            "request",
            method=method,
            route=route,
            status=response.status_code,
            seconds=round(seconds, 4),
            account_id=principal.account_id if principal else None,
        )
        return response
