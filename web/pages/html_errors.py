"""Errors of the pages as HTML, with the same words as the API's JSON."""

from http import HTTPStatus

import structlog
from flask import Blueprint, Flask, Response, g, make_response, render_template, request
from werkzeug.exceptions import HTTPException

from storage.errors import StorageError
from web.problems import (
    PROBLEM,
    answer_anything_else,
    answer_http_error,
    answer_os_error,
    answer_refusal,
    answer_storage_error,
)
from web.refusals import Refusal

log = structlog.get_logger()


def register_html_errors(blueprint: Blueprint) -> None:
    """Answer every exception of this blueprint's routes with an HTML page."""
    blueprint.register_error_handler(Refusal, lambda error: _as_page(answer_refusal(error)))
    blueprint.register_error_handler(StorageError, lambda error: _as_page(answer_storage_error(error)))
    blueprint.register_error_handler(HTTPException, lambda error: _as_page(answer_http_error(error)))
    blueprint.register_error_handler(OSError, lambda error: _as_page(answer_os_error(error)))
    blueprint.register_error_handler(Exception, lambda error: _as_page(answer_anything_else(error)))


def register_unknown_addresses(app: Flask) -> None:
    """Answer an unknown address with an HTML page in a browser, and with the API's JSON elsewhere."""

    def answer(error: HTTPException) -> Response:
        problem = answer_http_error(error)
        return _as_page(problem) if request.blueprint is None and _wants_page() else problem

    app.register_error_handler(HTTPException, answer)


def _wants_page() -> bool:
    if request.path.startswith("/v1/"):
        return False
    # The first media type is chosen where a client accepts any.
    return request.accept_mimetypes.best_match([PROBLEM, "application/json", "text/html"]) == "text/html"


def _as_page(problem: Response) -> Response:
    """The API's problem document as HTML, with its status and headers."""
    g.is_page = True
    body = problem.get_json(force=True, silent=True) or {}
    html = render_template(
        "error.html",
        title=HTTPStatus(problem.status_code).phrase,
        detail=body.get("detail", ""),
        request_id=g.get("request_id", ""),
    )
    page = make_response(html, problem.status_code)
    for name in ("Retry-After", "Allow"):
        if name in problem.headers:
            page.headers[name] = problem.headers[name]
    return page
