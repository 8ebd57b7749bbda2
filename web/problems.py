"""Errors as responses: one table from exceptions to status and code, one body (RFC 9457)."""

from http import HTTPStatus
from typing import Any

import structlog
from flask import Flask, Response, g, jsonify, make_response
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from storage.errors import (
    BlobConflict,
    BlobError,
    BlobUnavailable,
    DeliveryIsPending,
    FileGone,
    FileInUse,
    IdempotencyMismatch,
    JobErased,
    JobIsFinal,
    NotFound,
    StorageError,
    Unavailable,
)
from storage.temporary_space import TemporarySpaceFull
from web.api.faults import completed, known_fields
from web.api.schemas import field_errors, parameter_errors
from web.refusals import MAX_DETAIL_CHARACTERS, MAX_ERRORS, FieldError, InvalidRequest, Refusal

log = structlog.get_logger()

PROBLEM = "application/problem+json"
RETRY_AFTER_SECONDS = 2

STATUS_OF: dict[type[StorageError], int] = {
    Unavailable: 503,
    NotFound: 404,
    IdempotencyMismatch: 422,
    JobIsFinal: 409,
    JobErased: 410,
    DeliveryIsPending: 409,
    FileInUse: 409,
    FileGone: 409,
    BlobUnavailable: 503,
    BlobConflict: 500,
    BlobError: 500,
    StorageError: 500,
}


class Fault(BaseModel):
    """One error and its place: a JSON pointer, a parameter or header, or a CSV cell."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None
    line: int | None = None
    field: str | None = None


class Problem(BaseModel):
    """An error (RFC 9457); `code` is stable."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: list[Fault] = Field([], description="The first 100 errors.")
    num_errors: int | None = Field(None, description="The number of all errors.")


def problem(
    status: int,
    code: str,
    detail: str,
    errors: list[FieldError] | None = None,
    headers: dict[str, str] | None = None,
    num_errors: int | None = None,
) -> Response:
    """An `application/problem+json` response, with at most `MAX_ERRORS` errors."""
    body: dict[str, Any] = {
        "type": f"urn:calotype:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail[:MAX_DETAIL_CHARACTERS],
        "request_id": g.get("request_id", ""),
    }
    if errors:
        body["errors"] = [error.as_json() for error in errors[:MAX_ERRORS]]
        body["num_errors"] = len(errors) if num_errors is None else num_errors
    response = jsonify(body)
    response.status_code = status
    response.content_type = PROBLEM
    if status in (429, 503):
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    response.headers.update(headers or {})
    return response


def answer_refusal(error: Refusal) -> Response:
    """The response to a refused request; if its contents are invalid, with all of its errors."""
    if isinstance(error, InvalidRequest):
        error = completed(error)
    return problem(error.status, error.code, error.detail, error.errors, error.headers, error.num_errors)


def answer_storage_error(error: StorageError) -> Response:
    """The response to an error of the database or the object store."""
    status = next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)
    if status >= 500:
        log.error("storage_failed", code=error.code, error=str(error))
        detail = "temporarily unavailable; try again" if error.retryable else "internal error"
        return problem(status, error.code, detail)
    return problem(status, error.code, str(error))


def answer_http_error(error: HTTPException) -> Response:
    """The response to errors that Flask and werkzeug raise: an unknown route, a wrong method or form."""
    if error.response is not None:
        return make_response(error.response)
    status = error.code or 500
    code = HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")
    headers = {}
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return problem(status, code, error.description or HTTPStatus(status).phrase, headers=headers)


def answer_os_error(error: OSError) -> Response:
    """The response if there is no room for a temporary file; otherwise as to any other exception."""
    full = TemporarySpaceFull.of(error)
    if full is None:
        return answer_anything_else(error)
    log.error("temporary_space_full", directory=full.directory, num_free_bytes=full.num_free_bytes)
    return problem(503, full.code, full.detail)


def answer_anything_else(error: Exception) -> Response:
    """The response to any other exception, which is logged in full."""
    log.error("request_failed", exc_info=error)
    return problem(500, "internal_error", "internal error; the log has details under the request id")


def answer_invalid(error: ValidationError) -> Response:
    """The response to pydantic's errors in a body, a path or a query, for flask-openapi."""
    if error.title.endswith("Path"):
        faults = parameter_errors(error, known=())
        named = "; ".join(f"{fault.field}: {fault.detail}" for fault in faults)
        return problem(404, "not_found", f"there is nothing at this address: {named}", faults)
    if error.title.endswith("Query"):
        return answer_refusal(InvalidRequest.of(parameter_errors(error, known=())))
    return answer_refusal(InvalidRequest.of(field_errors(error, known=known_fields())))


def register_errors(app: Flask) -> None:
    """Make the application answer every exception with a problem document."""
    app.register_error_handler(Refusal, answer_refusal)
    app.register_error_handler(StorageError, answer_storage_error)
    app.register_error_handler(HTTPException, answer_http_error)
    app.register_error_handler(OSError, answer_os_error)
    app.register_error_handler(Exception, answer_anything_else)


def documented(*statuses: int) -> dict[str | int | HTTPStatus, Any]:
    """These error statuses as OpenAPI responses."""
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses
    }
