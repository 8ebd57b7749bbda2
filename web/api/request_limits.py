"""Bounds on what stands before the body: the query, the headers and their number, before anything reads them.

Servers in front have bounds of their own, which differ; these hold behind each of them. It knows no route
and no field.
"""

from flask import Flask, request
from werkzeug.exceptions import RequestHeaderFieldsTooLarge, RequestURITooLarge

from web.refusals import FieldError, InvalidRequest

MAX_PATH_BYTES = 8192
MAX_QUERY_BYTES = 4096
MAX_PARAMETERS = 32
MAX_HEADERS = 100
MAX_HEADER_BYTES = 8192
MAX_ALL_HEADER_BYTES = 32_768


def register_request_limits(app: Flask) -> None:
    """Refuse a request whose head is larger than any client of ours needs."""

    @app.before_request
    def refuse_large_heads() -> None:
        _check_address(request.environ.get("PATH_INFO", ""), request.query_string)
        _check_headers([value for name, value in request.environ.items() if name.startswith("HTTP_")])


def _check_address(path: str, query: bytes) -> None:
    if len(path) > MAX_PATH_BYTES:
        raise RequestURITooLarge(f"the path has more than {MAX_PATH_BYTES} bytes")
    # 422 as for any other fault of a query, which every route that takes one documents.
    if len(query) > MAX_QUERY_BYTES:
        raise _invalid_query(f"the query has more than {MAX_QUERY_BYTES} bytes")
    if query.count(b"&") >= MAX_PARAMETERS:
        raise _invalid_query(f"the query has more than {MAX_PARAMETERS} parameters")


def _invalid_query(detail: str) -> InvalidRequest:
    return InvalidRequest.of([FieldError("", detail, parameter=True)])


def _check_headers(values: list[str]) -> None:
    # WSGI joins headers of one name into one value, whose length is bounded all the same.
    if len(values) > MAX_HEADERS:
        raise RequestHeaderFieldsTooLarge(f"the request has more than {MAX_HEADERS} headers")
    sizes = [len(value) for value in values]
    if max(sizes, default=0) > MAX_HEADER_BYTES:
        raise RequestHeaderFieldsTooLarge(f"a header has more than {MAX_HEADER_BYTES} bytes")
    if sum(sizes) > MAX_ALL_HEADER_BYTES:
        raise RequestHeaderFieldsTooLarge(f"all headers have more than {MAX_ALL_HEADER_BYTES} bytes")
