"""One log line and one measurement for each request, under a request id that the client can quote.

Logs carry the route, never the address with its query, and neither prompts nor keys.
"""

import re
import time

import structlog
from flask import Flask, Response, g, request

from storage.identifiers import new_id
from web.metrics import Metrics

log = structlog.get_logger()

HEADER = "X-Request-ID"
_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


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
