"""`/v1/files`: input images of jobs, uploaded in a form or to a presigned link, shown, opened, deleted.

Owns the routes and the form. `web.api.file_intake` checks and stores a file; what a job does with it is not
known here.
"""

import re
from http import HTTPStatus
from typing import Any

from flask import Response, jsonify, redirect, request
from flask_openapi.blueprint import APIBlueprint
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wrappers import Response as AnyResponse

from catalogue.parameters import FILE_ID
from storage import files
from storage.errors import NotFound
from storage.files import File, NewFile
from tasks.errors import ImageUnreadable
from web.api.file_intake import take_in, take_over
from web.api.file_resources import FileList, FileResource, UploadResource, file_resource, upload_resource
from web.api.paging import PageQuery, decode_cursor, page_of
from web.api.schemas import FilePath, UploadRequest
from web.auth import SECURITY, account_id, require_key
from web.problems import documented
from web.refusals import (
    BodyTooLarge,
    FieldError,
    InvalidImage,
    InvalidRequest,
    UnsupportedMediaType,
    quoted,
)
from web.wiring import addresses, url_of, wired

FIELD = "file"
ENVELOPE_BYTES = 65_536  # for the rest of the form
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {
                    FIELD: {
                        "type": "string",
                        "contentMediaType": "image/*",
                        "description": "A PNG, JPEG or WebP without animation. The format is detected from "
                        "the bytes; name and media type are ignored.",
                    }
                },
            }
        }
    },
}
_NOTHING: dict[str | int | HTTPStatus, Any] = {204: {"description": "The file is deleted."}}

blueprint = APIBlueprint(
    "files",
    __name__,
    url_prefix="/v1/files",
    abp_tags=[{"name": "files", "description": "Input images of jobs."}],
    abp_security=SECURITY,
    abp_responses=documented(401, 422, 500, 503),
)


@blueprint.before_request
def authenticate() -> None:
    """Check the key before anything else of the request is read."""
    require_key(wired().db)


@blueprint.post(
    "",
    summary="Upload a file",
    request_body=_FORM,
    responses={200: FileResource, 201: FileResource, **documented(400, 413, 415)},
)
def create_file() -> Response:
    """`201` with the file, or `200` if the account has the same bytes already.

    It is deleted after a day unless a job uses it. Uploading it again extends that by a day.
    """
    data = _sent()
    try:
        file, is_new = take_in(account_id(), data)
    except ImageUnreadable as error:
        raise InvalidImage.of([FieldError(FIELD, str(error))]) from error
    return _shown(file, 201 if is_new else 200)


@blueprint.get("", summary="List files", responses={200: FileList})
def list_your_files(query: PageQuery) -> Response:
    """Your files, newest first, one page at a time."""
    position = decode_cursor(query.cursor)
    found = files.list_files(wired().db, account_id(), limit=query.limit + 1, before=position)
    page, cursor = page_of(found, query.limit)
    to = addresses()
    shown = FileList(files=[file_resource(file, to) for file in page], next_cursor=cursor)
    return jsonify(shown.model_dump(mode="json"))


@blueprint.post(
    "/uploads",
    summary="Get an upload link",
    responses={200: FileResource, 201: UploadResource, **documented(400, 413, 415)},
)
def begin_upload(body: UploadRequest) -> Response:
    """`201` with a presigned link, or `200` with the file if the account has these bytes already.

    Upload the bytes with `PUT` and the returned headers, then `POST` to the link `complete`.
    """
    wiring, account = wired(), account_id()
    limit = wiring.image_checks.limits.max_bytes
    if body.num_bytes > limit:
        raise InvalidRequest.of([FieldError("num_bytes", f"should be at most {limit}")])
    file_id = files.PREFIX + body.sha256
    kept = files.keep(wiring.db, account, file_id, keep_seconds=wiring.file_seconds)
    if kept is not None:
        return _shown(kept, 200)
    key = files.new_key(account, file_id)
    new = NewFile(account, file_id, body.media_type, body.num_bytes, key)
    file = files.begin_upload(wiring.db, new, keep_seconds=wiring.file_seconds)
    if file.is_ready:
        return _shown(file, 200)
    response = jsonify(upload_resource(file, addresses()).model_dump(mode="json"))
    response.status_code = 201
    return response


@blueprint.post(
    "/<file_id>/complete",
    summary="Complete an upload",
    responses={200: FileResource, 201: FileResource, **documented(404, 409)},
)
def complete_upload(path: FilePath) -> Response:
    """`201` with the file after its bytes are checked; `200` if they were checked before."""
    _check_id(path.file_id)
    file = files.get_declared(wired().db, account_id(), path.file_id)
    if file.is_ready:
        return _shown(file, 200)
    try:
        return _shown(take_over(file), 201)
    except ImageUnreadable as error:
        raise InvalidImage.of([FieldError("", f"the file {error}")]) from error


@blueprint.get("/<file_id>", summary="Show a file", responses={200: FileResource, **documented(404)})
def get_file(path: FilePath) -> Response:
    """The file's size, format and links."""
    return _shown(_get(path.file_id), 200)


@blueprint.get(
    "/<file_id>/content",
    summary="Open a file",
    responses={302: {"description": "Redirect to a newly signed link."}, **documented(404)},
)
def open_file(path: FilePath) -> AnyResponse:
    """Redirects to a link that works for a few minutes. The bytes are those that were uploaded."""
    response = redirect(addresses().signed_file(_get(path.file_id), for_head=request.method == "HEAD"), 302)
    response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.delete("/<file_id>", summary="Delete a file", responses={**_NOTHING, **documented(404, 409)})
def delete_file(path: FilePath) -> Response:
    """`204`, or `409` while a job that has not ended uses it. The object is deleted within a minute."""
    _check_id(path.file_id)
    files.delete(wired().db, account_id(), path.file_id)
    return Response(status=204)


def _sent() -> bytes:
    """The bytes of the file in the form; raises a `Refusal`."""
    if request.mimetype != "multipart/form-data":
        raise UnsupportedMediaType(
            f"Content-Type {quoted(request.mimetype or 'missing')} is not accepted: send "
            "'multipart/form-data' with the image in the field 'file'",
            headers={"Accept": "multipart/form-data"},
        )
    limit = wired().image_checks.limits.max_bytes
    request.max_content_length = limit + ENVELOPE_BYTES
    try:
        sent, form = request.files, request.form
    except RequestEntityTooLarge as error:
        raise BodyTooLarge(f"file: is larger than {limit} bytes") from error
    names = [name or "" for name in (*sent.keys(), *form.keys())]  # a part may have no name
    faults = [
        FieldError(name[:100], "is not a field; the only field is: file") for name in names if name != FIELD
    ]
    if len(sent.getlist(FIELD)) != 1 or FIELD in form:
        faults.append(FieldError(FIELD, "exactly one image is required in the multipart field 'file'"))
    if faults:
        raise InvalidRequest.of(faults)
    data: bytes = sent[FIELD].read()
    if len(data) > limit:
        raise BodyTooLarge(f"file: is larger than {limit} bytes")
    return data


def _get(file_id: str) -> File:
    _check_id(file_id)
    return files.get(wired().db, account_id(), file_id)


def _check_id(file_id: str) -> None:
    if not re.fullmatch(FILE_ID, file_id):
        raise NotFound(f"no file {quoted(file_id)}")


def _shown(file: File, status: int) -> Response:
    response = jsonify(file_resource(file, addresses()).model_dump(mode="json"))
    response.status_code = status
    if status == 201:
        response.headers["Location"] = url_of(f"/v1/files/{file.id}")
    return response
