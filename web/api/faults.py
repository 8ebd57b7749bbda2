"""All errors of a request in one answer.

A route stops at the first invalid part of its request: the query, the body, a header, or a limit of the
model. Before the refusal is sent, this module checks the other parts too. It knows which parts a route
declares, but none of their limits.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from flask import current_app, g, request
from flask.typing import ResponseReturnValue
from flask_openapi.openapi import OpenAPI
from pydantic import BaseModel, ValidationError

from catalogue.parameters import FILES, entries_of
from storage.errors import StorageError
from web.api.admission import Files
from web.api.input_files import files_named, is_carried
from web.api.request_headers import idempotency_key
from web.api.schemas import JobRequest, field_errors, parameter_errors
from web.auth import account_id
from web.refusals import FieldError, InvalidRequest, Refusal
from web.wiring import wired

API = "/v1/"


class CheckedApi(OpenAPI):
    """The application; routes of the API refuse query parameters that they do not declare."""

    def preprocess_request(self) -> ResponseReturnValue | None:
        """Like Flask's, but also checks the query; without a valid key a request is refused before that."""
        answer = super().preprocess_request()
        if answer is None and is_of_api() and (faults := query_faults()):
            raise InvalidRequest.of(faults)
        return answer


def completed(refusal: InvalidRequest) -> InvalidRequest:
    """The same refusal, with every other error of the current request added."""
    # Nothing more is checked for a request without a valid key.
    if not is_of_api() or "principal" not in g:
        return refusal
    named = dict.fromkeys(refusal.errors)
    more = [
        each for look in (query_faults, header_faults, body_faults) for each in look() if each not in named
    ]
    if not more:
        return refusal
    if type(refusal) is InvalidRequest:
        return InvalidRequest.of([*named, *more])
    # A report by line keeps its detail; errors of the request itself precede those of the lines.
    return type(refusal)(refusal.detail, [*more, *named], num_errors=refusal.num_errors + len(more))


def is_of_api() -> bool:
    """Whether the current request is for a route of the API."""
    return request.path.startswith(API) and request.url_rule is not None


def query_faults() -> list[FieldError]:
    """The errors of the query: unknown parameters, repeated parameters, values out of bounds."""
    model = _declared("query")
    fields = {} if model is None else model.model_fields
    given: dict[str, Any] = {}
    faults = []
    for name, values in request.args.lists():
        if name in fields and _is_list(fields[name].annotation):
            given[name] = values
        elif len(values) > 1 and name in fields:
            faults.append(
                FieldError(name, f"appears {len(values)} times; it may appear once", parameter=True)
            )
        else:
            given[name] = values[0]
    try:
        (model or _Nothing).model_validate(given)
    except ValidationError as error:
        faults += parameter_errors(error, known=fields)
    return faults


def header_faults() -> list[FieldError]:
    """The errors of the headers that a submission may have."""
    try:
        if request.method == "POST":
            idempotency_key()
    except InvalidRequest as refused:
        return refused.errors
    return []


def body_faults() -> list[FieldError]:
    """The errors of a JSON body, if the route declares one and it can be parsed."""
    model = _declared("body")
    if model is None:
        return []
    try:
        fields = request.get_json()
    except InvalidRequest as refused:
        return refused.errors
    except Refusal:
        return []
    if model is JobRequest:
        return wired().admission.errors_of(fields, _files_in(fields))
    try:
        model.model_validate(fields)
    except ValidationError as error:
        return field_errors(error, known=model.model_fields)
    return []


def _files_in(fields: Mapping[str, Any]) -> Files | None:
    """The files that a body names, and the images inside it; None if the files cannot be looked up."""
    texts = [text for name in FILES for text in entries_of(fields.get(name))]
    carried = [one for one in texts if isinstance(one, str) and is_carried(one)]
    with suppress(StorageError):
        return {**dict.fromkeys(carried), **files_named(account_id(), texts)}
    return None


def known_fields() -> tuple[str, ...]:
    """The fields of the JSON body that the current route declares."""
    model = _declared("body")
    return () if model is None else tuple(model.model_fields)


class _Nothing(BaseModel, extra="forbid"):
    """The query of a route that declares no parameters."""


def _declared(part: str) -> type[BaseModel] | None:
    """The model of this part (`query`, `body`) of the route, from the annotations of its view."""
    return _models_of(current_app.view_functions[str(request.endpoint)]).get(part)


@cache
def _models_of(view: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(view)


def _is_list(annotation: Any) -> bool:
    return any(get_origin(part) is list for part in (annotation, *get_args(annotation)))
