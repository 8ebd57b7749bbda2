"""`/v1/batches`: a CSV of prompts becomes one bulk job per row, or a report of errors by line and no job.

Owns the upload and the answers. `web.csv.rows` reads the file; `web.api.batch_rows` turns rows into jobs.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from http import HTTPStatus
from os import SEEK_END
from typing import Any, BinaryIO, cast

from flask import Response, jsonify, request, stream_with_context
from flask_openapi.blueprint import APIBlueprint
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge

from catalogue.accounting import check_tag
from storage import batches
from storage.batches import Batch
from storage.errors import NotFound
from storage.job_views import Job
from web.api.addresses import Addresses
from web.api.batch_rows import Work, work_again, work_of
from web.api.paging import PageQuery, decode_cursor, page_of
from web.api.request_headers import digest_of, digest_of_file, idempotency_key
from web.api.resources import BatchList, BatchResource, batch_resource
from web.api.schemas import BATCH_ID, BatchPath
from web.api.submission import NewBatch, submit_batch
from web.auth import SECURITY, account_id, require_key
from web.csv.header import COLUMNS, DELIMITERS, known_delimiter
from web.csv.reports import ReportQuery, error_lines, result_lines
from web.csv.rows import parse_csv
from web.csv.text import known_encoding
from web.problems import documented
from web.refusals import BodyTooLarge, FieldError, InvalidCsv, InvalidRequest, UnsupportedMediaType, quoted
from web.wiring import addresses, url_of, wired

DEFAULTS = ("model", "tag")  # for rows that leave the column empty
DIALECT = {"delimiter": known_delimiter, "encoding": known_encoding}
FORM_FIELDS = (*DEFAULTS, "webhook_url", *DIALECT)
MULTIPART_BYTES = 65_536  # for the rest of the form
REPORT_ROW_BYTES = 2048
"""By how much a row of a report may be longer than the row it came from: more columns, and UTF-8."""
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
                        "description": "A header line, then one job per row. "
                        f"Columns: {', '.join(COLUMNS)}; "
                        "only `prompt` is required, and an empty cell means the default. The other columns "
                        "of `results.csv` and `errors.csv` are accepted too: a row with a `job_id` continues "
                        "that job.",
                    },
                    "delimiter": {
                        "type": "string",
                        "description": f"{', '.join(DELIMITERS)}, or the character itself; detected if left "
                        "out.",
                    },
                    "encoding": {
                        "type": "string",
                        "description": "The file's encoding, such as `windows-1251` or `macintosh`. If left "
                        "out it is detected: by byte-order mark, else UTF-8, else the encoding of Excel.",
                    },
                    "model": {"type": "string", "description": "The model for rows that do not name one."},
                    "tag": {"type": "string", "description": "The tag of rows that do not have one."},
                    "webhook_url": {
                        "type": "string",
                        "description": "Receives one message when the last job has ended. The column "
                        "`webhook_url` of a row receives the messages of that row's job.",
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
    abp_tags=[{"name": "batches", "description": "A CSV of prompts, run as bulk jobs."}],
    abp_security=SECURITY,
    abp_responses=documented(401, 422, 500, 503),
)


@blueprint.before_request
def authenticate() -> None:
    """Check the key before anything else of the request is read."""
    require_key(wired().db)


@blueprint.post(
    "",
    summary="Upload a CSV of prompts",
    request_body=_UPLOAD,
    responses={202: BatchResource, **documented(400, 413, 415)},
)
def create_batch() -> Response:
    """Checks every row first. If one is invalid, no job is created and all errors are reported by line."""
    upload, form, faults = _uploaded()
    file = cast("BinaryIO", upload.stream)
    wiring = wired()
    limit = max_report_bytes(wiring.max_csv_bytes, wiring.max_csv_rows)
    if not _is_report(file):
        limit = wiring.max_csv_bytes
    if file.seek(0, SEEK_END) > limit:
        raise BodyTooLarge(f"file: is larger than {limit} bytes")
    key = None
    try:
        key = idempotency_key()
    except InvalidRequest as refused:
        faults = [*faults, *refused.errors]
    sent = [part.encode() for item in sorted(form.items()) for part in item]
    digest = digest_of_file(file, *sent)

    def read() -> tuple[Work, dict[str, Any]]:
        own = wiring.catalogue.pipeline_types
        dialect = {name: form.get(name) for name in DIALECT}
        try:
            rows = parse_csv(file, max_rows=wiring.max_csv_rows, own=own, **dialect)
            work = work_of(rows, {name: form[name] for name in DEFAULTS if name in form})
        except InvalidCsv as error:
            error.errors[:0] = faults
            error.num_errors += len(faults)
            raise
        if faults:
            work.close()
            raise InvalidRequest.of(faults)
        return work, {"read_as": rows.read_as, "warnings": [*rows.warnings, *work.warnings]}

    return _accept(_filename(upload), read, key, digest, form.get("webhook_url"))


@blueprint.post(
    "/<batch_id>/retry",
    summary="Retry a batch",
    responses={202: BatchResource, **documented(404, 409)},
)
def retry_batch(path: BatchPath) -> Response:
    """Creates a batch of the jobs that failed, expired or were canceled, with their parameters and seeds.

    If a job was retried before, its retry counts: a retry that succeeded or has not ended is not repeated.
    If nothing is left to run, the new batch has no jobs. Its reports have every row of the old batch.
    """
    batch = _get(path.batch_id)

    def read() -> tuple[Work, dict[str, Any]]:
        work = work_again(batches.jobs_of(wired().db, batch.account_id, batch.id))
        return work, {"retry_of": batch.id}

    key = idempotency_key(scope=f"retry {batch.id}")
    return _accept(batch.filename, read, key, digest_of(), batch.webhook_url)


def _accept(
    filename: str,
    read: Callable[[], tuple[Work, dict[str, Any]]],
    key: str | None,
    digest: str,
    webhook_url: str | None,
) -> Response:
    with ExitStack() as held:

        def new_batch() -> NewBatch:
            work, reading = read()
            held.enter_context(closing(work))
            return NewBatch(work.jobs, work.earlier, reading)

        batch, created = submit_batch(
            new_batch, account_id(), key, digest, filename=filename, webhook_url=webhook_url
        )
    response = _shown(batch, 202)
    response.headers["Location"] = url_of(f"/v1/batches/{batch.id}")
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    return response


@blueprint.get("", summary="List batches", responses={200: BatchList})
def list_your_batches(query: PageQuery) -> Response:
    """Your batches, newest first, one page at a time."""
    position = decode_cursor(query.cursor)
    found = batches.list_batches(wired().db, account_id(), limit=query.limit + 1, before=position)
    page, cursor = page_of(found, query.limit)
    shown = BatchList(batches=_shown_batches(page), next_cursor=cursor)
    return jsonify(shown.model_dump(mode="json"))


@blueprint.get("/<batch_id>", summary="Show a batch", responses={200: BatchResource, **documented(404)})
def get_batch(path: BatchPath) -> Response:
    """The batch and its progress."""
    return _shown(_get(path.batch_id), 200)


@blueprint.delete(
    "/<batch_id>", summary="Cancel a batch", responses={200: BatchResource, **documented(404, 409)}
)
def cancel_batch(path: BatchPath) -> Response:
    """Cancels the jobs that have not ended; others keep their images. `409` if all jobs have ended."""
    _check_id(path.batch_id)
    return _shown(batches.cancel(wired().db, account_id(), path.batch_id), 200)


Lines = Callable[[Iterable[Job], ReportQuery, Sequence[str], Addresses], Iterator[str]]
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
    """Every row with its parameters, its state and permanent links to its images.

    It can be uploaded again, which retries the rows that ended without images.
    """
    return _csv(_get(path.batch_id), "results", result_lines, query)


@blueprint.get("/<batch_id>/errors.csv", summary="Download the errors", responses={**_CSV, **documented(404)})
def download_errors(path: BatchPath, query: ReportQuery) -> Response:
    """The rows that failed, expired or were canceled, with the reason. It can be uploaded again."""
    return _csv(_get(path.batch_id), "errors", error_lines, query)


def max_report_bytes(max_csv_bytes: int, max_csv_rows: int) -> int:
    """The largest upload: the report of the largest accepted file, since reports can be uploaded again."""
    return max_csv_bytes + max_csv_rows * REPORT_ROW_BYTES


def _is_report(file: BinaryIO) -> bool:
    """Whether its first lines name a column of a report, in any encoding that spreadsheets write."""
    file.seek(0)
    return REPORT_MARK in file.read(HEADER_BYTES).replace(b"\0", b"").lower()


def _uploaded() -> tuple[FileStorage, dict[str, str], list[FieldError]]:
    """The file, the form's fields, and the errors of fields that do not affect how the file is read.

    Raises a `Refusal` with all errors if a field that does affect it is invalid.
    """
    if request.mimetype != "multipart/form-data":
        raise UnsupportedMediaType(
            f"Content-Type {quoted(request.mimetype or 'missing')} is not accepted: send "
            "'multipart/form-data' with the CSV in the field 'file'",
            headers={"Accept": "multipart/form-data"},
        )
    limit = max_report_bytes(wired().max_csv_bytes, wired().max_csv_rows)
    request.max_content_length = limit + MULTIPART_BYTES
    try:
        files, form = request.files, request.form
    except RequestEntityTooLarge as error:
        raise BodyTooLarge(f"file: the upload is larger than {limit} bytes") from error
    request.environ["wsgi.input"].close()  # the form has copies, and the body may be a large file
    names = [name or "" for name in (*files.keys(), *form.keys())]  # a part may have no name
    faults = [
        FieldError(name[:100], f"is not a field; the fields are: file, {', '.join(FORM_FIELDS)}")
        for name in names
        if name != "file" and name not in FORM_FIELDS
    ]
    errors = []
    file = files.get("file")
    if file is None or len(files.getlist("file")) > 1:
        errors.append(FieldError("file", "exactly one CSV file is required in the multipart field 'file'"))
    # Browsers send an unused choice of a form as an empty string.
    given = {name: form[name] for name in FORM_FIELDS if form.get(name)}
    for name, known in DIALECT.items():
        value = given.pop(name, "auto")
        try:
            if value != "auto":
                given[name] = known(value)  # normalised, so that the digest does not depend on the spelling
        except ValueError as error:
            errors.append(FieldError(name, str(error)))
    faults += [*wired().admission.webhook_errors(given.get("webhook_url")), *_tag_errors(given)]
    if errors or file is None:
        raise InvalidRequest.of([*faults, *errors])
    return file, given, faults


def _tag_errors(given: dict[str, str]) -> list[FieldError]:
    """The error of the form's tag, which is taken out then: it would be repeated for every row."""
    try:
        if "tag" in given:
            check_tag(given["tag"])
    except ValueError as error:
        del given["tag"]
        return [FieldError("tag", str(error))]
    return []


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


def _shown_batches(found: Sequence[Batch]) -> list[BatchResource]:
    waits, to = wired().waits.of_batches(account_id(), found), addresses()
    currency = wired().catalogue.prices.currency
    return [batch_resource(batch, waits.get(batch.id, []), currency, to) for batch in found]


def _shown(batch: Batch, status: int) -> Response:
    (shown,) = _shown_batches([batch])
    response = jsonify(shown.model_dump(mode="json"))
    response.status_code = status
    return response


def _read_in_time(jobs: Iterator[Job]) -> Iterator[Job]:
    """The jobs, each of which may take the whole time of a request to be read."""
    db = wired().db
    db.extend_request()
    for job in jobs:
        yield job
        db.extend_request()


def _csv(batch: Batch, name: str, lines: Lines, query: ReportQuery) -> Response:
    jobs = batches.jobs_of(wired().db, batch.account_id, batch.id)
    text = lines(_read_in_time(jobs), query, tuple(wired().catalogue.pipeline_types), addresses())
    response = Response(stream_with_context(text), mimetype="text/csv")
    response.headers["Content-Disposition"] = f'attachment; filename="{batch.id}-{name}.csv"'
    return response
