"""What Flask runs around every route: limits on path, query and headers, `OPTIONS`, log, security headers.

It knows no route and no field of a request. Bounds on the body are in `web.api`.
"""

import re
import time
from urllib.parse import urlsplit

import structlog
from flask import Flask, Response, g, request
from flask.globals import request_ctx
from secure import (
    ContentSecurityPolicy,
    CrossOriginOpenerPolicy,
    CrossOriginResourcePolicy,
    ReferrerPolicy,
    Secure,
    XContentTypeOptions,
    XFrameOptions,
)
from werkzeug.exceptions import RequestHeaderFieldsTooLarge, RequestURITooLarge

from storage.identifiers import new_id
from web.metrics import Metrics
from web.refusals import FieldError, InvalidRequest

log = structlog.get_logger()

REQUEST_ID = "X-Request-ID"
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

MAX_PATH_BYTES = 8192
MAX_QUERY_BYTES = 4096
MAX_PARAMETERS = 32
MAX_HEADERS = 100
MAX_HEADER_BYTES = 8192
MAX_ALL_HEADER_BYTES = 32_768

NOTHING = "default-src 'none'; frame-ancestors 'none'"
PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' {images}; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# Swagger UI writes style attributes and draws its icons from data: addresses.
SWAGGER = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGES = frozenset({"page", "job_page"})  # blueprints whose answers may belong to an account


def register_access_log(app: Flask, metrics: Metrics) -> None:
    """Give every request an id that the client can quote, and log and measure its answer.

    The log has the route and never the address with its query, and neither prompts nor keys.
    """

    @app.before_request
    def begin() -> None:
        given = request.headers.get(REQUEST_ID, "")
        g.request_id = given if _VALID_ID.fullmatch(given) else new_id("req")
        g.began = time.perf_counter()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    def end(response: Response) -> Response:
        seconds = time.perf_counter() - g.get("began", time.perf_counter())
        response.headers[REQUEST_ID] = g.get("request_id", "")
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


def register_request_limits(app: Flask) -> None:
    """Refuse a request whose path, query or headers are larger than any legitimate client needs.

    Proxies have their own limits, which differ; these apply behind any of them.
    """

    @app.before_request
    def refuse_large_heads() -> None:
        _check_address(request.environ.get("PATH_INFO", ""), request.query_string)
        _check_headers([value for name, value in request.environ.items() if name.startswith("HTTP_")])


def _check_address(path: str, query: bytes) -> None:
    if len(path) > MAX_PATH_BYTES:
        raise RequestURITooLarge(f"the path has more than {MAX_PATH_BYTES} bytes")
    # 422, as for any other error in a query: every route with a query documents it.
    if len(query) > MAX_QUERY_BYTES:
        raise _invalid_query(f"the query has more than {MAX_QUERY_BYTES} bytes")
    if query.count(b"&") >= MAX_PARAMETERS:
        raise _invalid_query(f"the query has more than {MAX_PARAMETERS} parameters")


def _invalid_query(detail: str) -> InvalidRequest:
    return InvalidRequest.of([FieldError("", detail, parameter=True)])


def _check_headers(values: list[str]) -> None:
    # WSGI joins headers of one name into one value; the length of that value is bounded as well.
    if len(values) > MAX_HEADERS:
        raise RequestHeaderFieldsTooLarge(f"the request has more than {MAX_HEADERS} headers")
    sizes = [len(value) for value in values]
    if max(sizes, default=0) > MAX_HEADER_BYTES:
        raise RequestHeaderFieldsTooLarge(f"a header has more than {MAX_HEADER_BYTES} bytes")
    if sum(sizes) > MAX_ALL_HEADER_BYTES:
        raise RequestHeaderFieldsTooLarge(f"all headers together have more than {MAX_ALL_HEADER_BYTES} bytes")


def register_options(app: Flask) -> None:
    """Answer `OPTIONS` with the methods of the address, without authentication."""

    @app.before_request
    def list_methods() -> Response | None:
        if request.method != "OPTIONS" or request.routing_exception is not None:
            return None
        adapter = request_ctx.url_adapter
        assert adapter is not None  # a request is being handled
        response = Response(status=204)
        response.headers["Allow"] = ", ".join(sorted(adapter.allowed_methods()))
        return response


def register_security_headers(app: Flask, *, images: str) -> None:
    """Set the security headers of every answer, and keep responses that belong to an account out of caches.

    Only our own pages may load anything, and only from this server. The one exception is images of jobs,
    which pages load from the object store: `images` is its address for clients.
    """
    place = urlsplit(images)
    page = PAGE.format(images=f"{place.scheme}://{place.netloc}")
    headers = {policy: _security_headers(policy) for policy in (NOTHING, page, SWAGGER)}

    @app.after_request
    def protect(response: Response) -> Response:
        is_page = request.blueprint in PAGES or bool(g.get("is_page"))
        policy = page if is_page else SWAGGER if request.endpoint == "docs.show_docs" else NOTHING
        for name, value in headers[policy].items():
            response.headers[name] = value
        if is_page:
            # "no-referrer" would make browsers send our own forms with `Origin: null`.
            response.headers["Referrer-Policy"] = "same-origin"
        if is_page or request.path.startswith("/v1/") or response.status_code >= 400:
            response.headers.setdefault("Cache-Control", "no-store")
        return response


def _security_headers(policy: str) -> dict[str, str]:
    found = Secure(
        csp=ContentSecurityPolicy().value(policy),
        coop=CrossOriginOpenerPolicy().same_origin(),
        corp=CrossOriginResourcePolicy().same_origin(),
        referrer=ReferrerPolicy().no_referrer(),
        xcto=XContentTypeOptions().nosniff(),
        xfo=XFrameOptions().deny(),
    )
    return dict(found.headers)
