"""`/v1/batches`: a CSV of prompts becomes many bulk jobs at once, or a report by line and none.

Owns the upload and the answers. `web.csv.rows` reads the file; `web.api.batch_rows` makes jobs of its rows.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

from flask import Response, jsonify, request, stream_with_context
from flask_openapi.blueprint import APIBlueprint
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge

from storage import batches
from storage.batches import Batch
from storage.errors import NotFound
from storage.job_views import Job
from web.api.batch_rows import Work, work_again, work_of
from web.api.cursor import decode_cursor, encode_cursor
from web.api.idempotency import digest_of, idempotency_key
from web.api.resources import BatchList, BatchResource, batch_resource, batch_resources
from web.api.schemas import BATCH_ID, BatchPath, PageQuery
from web.auth import SECURITY, account_id, require_key
from web.csv.header import COLUMNS, DELIMITERS, known_delimiter
from web.csv.reports import ReportQuery, error_lines, result_lines
from web.csv.rows import parse_csv
from web.csv.text import known_encoding
from web.errors import documented
from web.refusals import BodyTooLarge, FieldError, InvalidCsv, InvalidRequest, UnsupportedMediaType, quoted
from web.wiring import url_of, wired

DEFAULTS = ("model",)  # for every row that leaves the column out
DIALECT = {"delimiter": known_delimiter, "encoding": known_encoding}
FORM_FIELDS = (*DEFAULTS, "webhook_url", *DIALECT)
MULTIPART_BYTES = 65_536  # what the envelope around the file may take
REPORT_ROW_BYTES = 2048
"""What a report may have more of a row than the file that made it: its columns, and letters as UTF-8."""
REPORT_MARK = b"job_id"
HEADER_BYTES = 65_536
MAX_FILENAME_CHARACTERS = 200

_UPLOAD = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "string",
                        "contentMediaType": "text/csv",
                        "description": "A header line, then one job a row. "
                        f"Columns: {', '.join(COLUMNS)}; "
                        "only `prompt` is required, an empty cell means the default. What `results.csv` and "
                        "`errors.csv` have beside them may be there too: a row with a `job_id` continues "
                        "that job.",
                    },
                    "delimiter": {
                        "type": "string",
                        "description": f"{', '.join(DELIMITERS)}, or the character itself; recognised if "
                        "left out.",
                    },
                    "encoding": {
                        "type": "string",
                        "description": "Of the file, as `windows-1251` or `macintosh`; recognised if left "
                        "out: a byte-order mark, then UTF-8, then what Excel writes.",
                    },
                    "model": {"type": "string", "description": "For rows that name none."},
                    "webhook_url": {
                        "type": "string",
                        "description": "Told once, when the last job has ended; a row's column `webhook_url` "
                        "is told of that row's job.",
                    },
                },
            }
        }
    },
}

blueprint = APIBlueprint(
    "batches",
    __name__,
    url_prefix="/v1/batches",
    abp_tags=[{"name": "batches", "description": "A CSV of prompts, run when nobody waits for an image."}],
    abp_security=SECURITY,
    abp_responses=documented(401, 422, 500, 503),
)


@blueprint.before_request
def authenticate() -> None:
    """A key first; the rest of the request is read afterwards."""
    require_key(wired().db)


@blueprint.post(
    "",
    summary="Upload a CSV of prompts",
    request_body=_UPLOAD,
    responses={202: BatchResource, **documented(400, 413, 415)},
)
def create_batch() -> Response:
    """Checks every row first: one bad row, and nothing is created and every bad line is reported."""
    file, form, faults = _uploaded()
    data = file.read()
    wiring = wired()
    limit = max_report_bytes(wiring.max_csv_bytes, wiring.max_csv_rows)
    if not _is_report(data):
        limit = wiring.max_csv_bytes
    if len(data) > limit:
        raise BodyTooLarge(f"file: larger than {limit} bytes")
    key = None
    try:
        key = idempotency_key()
    except InvalidRequest as refused:
        faults = [*faults, *refused.errors]
    sent = [part.encode() for item in sorted(form.items()) for part in item]
    digest = digest_of(data, *sent)

    def read() -> tuple[Work, dict[str, Any]]:
        own = wiring.catalogue.pipeline_types
        dialect = {name: form.get(name) for name in DIALECT}
        try:
            rows = parse_csv(data, max_rows=wiring.max_csv_rows, own=own, **dialect)
            work = work_of(rows, {name: form[name] for name in DEFAULTS if name in form})
        except InvalidCsv as error:
            error.errors[:0] = faults
            error.num_errors += len(faults)
            raise
        if faults:
            raise InvalidRequest.of(faults)
        return work, {"read_as": rows.read_as, "warnings": [*rows.warnings, *work.warnings]}

    return _accept(_filename(file), read, key, digest, form.get("webhook_url"))


@blueprint.post(
    "/<batch_id>/retry",
    summary="Run what failed again",
    responses={202: BatchResource, **documented(404, 409)},
)
def retry_batch(path: BatchPath) -> Response:
    """A new batch of the jobs that failed, expired or were canceled, with their parameters and seeds.

    A job that was retried before counts as its retry: one that has succeeded or has not ended is left alone.
    With nothing left to run the new batch has no jobs. Its reports have every row of the old one.
    """
    batch = _get(path.batch_id)

    def read() -> tuple[Work, dict[str, Any]]:
        jobs = batches.jobs_of(wired().db, batch.account_id, batch.id)
        return work_again(jobs), {"retry_of": batch.id}

    key = idempotency_key(scope=f"retry {batch.id}")
    return _accept(batch.filename, read, key, digest_of(), batch.webhook_url)


def _accept(
    filename: str,
    read: Callable[[], tuple[Work, dict[str, Any]]],
    key: str | None,
    digest: str,
    webhook_url: str | None,
) -> Response:
    wiring = wired()
    # Before its rows are looked at: what was accepted once is shown, whatever would be refused by now.
    batch, created = batches.made_before(wiring.db, account_id(), key, digest), False
    if batch is None:
        work, reading = read()
        batch, created = batches.create(
            wiring.db,
            account_id(),
            filename,
            work.jobs,
            earlier_jobs=work.earlier,
            reading=reading,
            redispatch_seconds=wiring.redispatch_seconds,
            webhook_url=webhook_url,
            idempotency_key=key,
            request_hash=digest,
        )
    response = _shown(batch, 202)
    response.headers["Location"] = url_of(f"/v1/batches/{batch.id}")
    if created:
        wiring.metrics.batch_rows_accepted.inc(batch.num_jobs)
    else:
        response.headers["Idempotent-Replayed"] = "true"
    return response


@blueprint.get("", summary="List batches", responses={200: BatchList})
def list_your_batches(query: PageQuery) -> Response:
    """Your batches, newest first, a page at a time."""
    position = decode_cursor(query.cursor)
    found = batches.list_batches(wired().db, account_id(), limit=query.limit + 1, before=position)
    page = found[: query.limit]
    more = len(found) > query.limit
    cursor = encode_cursor(page[-1].created_at, page[-1].id) if more else None
    shown = BatchList(batches=batch_resources(account_id(), page), next_cursor=cursor)
    return jsonify(shown.model_dump(mode="json"))


@blueprint.get("/<batch_id>", summary="Show a batch", responses={200: BatchResource, **documented(404)})
def get_batch(path: BatchPath) -> Response:
    """How far the batch is."""
    return _shown(_get(path.batch_id), 200)


@blueprint.delete(
    "/<batch_id>", summary="Cancel a batch", responses={200: BatchResource, **documented(404, 409)}
)
def cancel_batch(path: BatchPath) -> Response:
    """Cancels what has not ended; finished jobs keep their images. `409` once everything has ended."""
    _check_id(path.batch_id)
    return _shown(batches.cancel(wired().db, account_id(), path.batch_id), 200)


_CSV: dict[str | int | HTTPStatus, Any] = {
    200: {
        "description": "CSV, in the order of the upload.",
        "content": {"text/csv": {"schema": {"type": "string"}}},
    }
}


@blueprint.get(
    "/<batch_id>/results.csv", summary="Download the results", responses={**_CSV, **documented(404)}
)
def download_results(path: BatchPath, query: ReportQuery) -> Response:
    """Every row, what it asked for and what became of it so far; image links are this API's and do not rot.

    It can be uploaded again, which runs what came to nothing.
    """
    return _csv(_get(path.batch_id), "results", partial(result_lines, query=query))


@blueprint.get("/<batch_id>/errors.csv", summary="Download the errors", responses={**_CSV, **documented(404)})
def download_errors(path: BatchPath, query: ReportQuery) -> Response:
    """The rows that failed, expired or were canceled, and why. It can be uploaded again."""
    return _csv(_get(path.batch_id), "errors", partial(error_lines, query=query))


def max_report_bytes(max_csv_bytes: int, max_csv_rows: int) -> int:
    """The largest upload: a report of the largest file that is accepted, which can be uploaded again."""
    return max_csv_bytes + max_csv_rows * REPORT_ROW_BYTES


def _is_report(data: bytes) -> bool:
    """Whether its first lines name the column of a report, in any encoding that a spreadsheet writes."""
    return REPORT_MARK in data[:HEADER_BYTES].replace(b"\0", b"").lower()


def _uploaded() -> tuple[FileStorage, dict[str, str], list[FieldError]]:
    """The file, the form's fields, and what is wrong with those that do not decide how the file is read.

    Raises a `Refusal` naming every part that is missing or wrong if the file cannot be read for one of them.
    """
    if request.mimetype != "multipart/form-data":
        raise UnsupportedMediaType(
            f"Content-Type is {quoted(request.mimetype or 'missing')}: this route takes "
            "'multipart/form-data' with the CSV in the field 'file'",
            headers={"Accept": "multipart/form-data"},
        )
    limit = max_report_bytes(wired().max_csv_bytes, wired().max_csv_rows)
    request.max_content_length = limit + MULTIPART_BYTES
    try:
        files, form = request.files, request.form
    except RequestEntityTooLarge as error:
        raise BodyTooLarge(f"file: the upload is larger than {limit} bytes") from error
    names = [name or "" for name in (*files.keys(), *form.keys())]  # a part may have none at all
    faults = [
        FieldError(name[:100], f"is not a known field; there is: file, {', '.join(FORM_FIELDS)}")
        for name in names
        if name != "file" and name not in FORM_FIELDS
    ]
    errors = []
    file = files.get("file")
    if file is None or len(files.getlist("file")) > 1:
        errors.append(FieldError("file", "exactly one CSV file is required in the multipart field 'file'"))
    # A form sends a choice that nobody made as an empty text.
    given = {name: form[name] for name in FORM_FIELDS if form.get(name)}
    for name, known in DIALECT.items():
        said = given.pop(name, "auto")
        try:
            if said != "auto":
                given[name] = known(said)  # so that a repetition is known by what it means
        except ValueError as error:
            errors.append(FieldError(name, str(error)))
    faults += wired().admission.webhook_errors(given.get("webhook_url"))
    if errors or file is None:
        raise InvalidRequest.of([*faults, *errors])
    return file, given, faults


def _filename(file: FileStorage) -> str:
    name = re.split(r"[/\\]", file.filename or "")[-1]
    clean = "".join(character for character in name if character.isprintable())
    return clean[:MAX_FILENAME_CHARACTERS] or "prompts.csv"


def _get(batch_id: str) -> Batch:
    _check_id(batch_id)
    return batches.get(wired().db, account_id(), batch_id)


def _check_id(batch_id: str) -> None:
    if not re.fullmatch(BATCH_ID, batch_id):
        raise NotFound(f"no batch {quoted(batch_id)}")


def _shown(batch: Batch, status: int) -> Response:
    response = jsonify(batch_resource(batch).model_dump(mode="json"))
    response.status_code = status
    return response


def _csv(batch: Batch, name: str, lines: Callable[[Iterable[Job]], Iterator[str]]) -> Response:
    jobs = batches.jobs_of(wired().db, batch.account_id, batch.id)
    response = Response(stream_with_context(lines(jobs)), mimetype="text/csv")
    response.headers["Content-Disposition"] = f'attachment; filename="{batch.id}-{name}.csv"'
    return response
