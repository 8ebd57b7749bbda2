"""The routes of the API: a function for each, which builds the request and a reader of its response.

Nothing here sends anything. A call may be repeated after a lost response if its method is GET or if it has an
`Idempotency-Key`, by which the server recognises a repetition (docs/reference/api.md).
"""

import csv
import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2

from .answers import json_object, link_of
from .resources import (
    Batch,
    File,
    Job,
    JobPage,
    Json,
    Model,
    PresignedUpload,
    Tier,
    UsagePage,
    batch_of,
    file_of,
    job_of,
    job_page_of,
    list_of,
    upload_of,
    usage_page_of,
)
from .values import as_utf8, header, json_fields, texts

T = TypeVar("T")

SECONDS_A_ROW = 0.003
"""How long the server may take for each row of a CSV before it answers: 300 s for 100,000 rows."""
MAX_BATCH_SECONDS = 300.0
"""How long it may take for a batch whose number of rows is not known: that of the largest one."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and the reader of its response; the server may take `wait_seconds` longer than usual."""

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    is_repeatable: bool
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Json | None = None
    data: Mapping[str, str] | None = None
    files: Mapping[str, tuple[str, bytes, str]] | None = None
    wait_seconds: float = 0.0


def submit(
    prompt: str, parameters: Mapping[str, Any], *, idempotency_key: str | None, wait_seconds: int
) -> Call[Job]:
    """`POST /v1/jobs`. A parameter that is None is left out."""
    given = {name: value for name, value in parameters.items() if value is not None}
    return Call(
        "POST",
        "/v1/jobs",
        _as(job_of),
        is_repeatable=True,
        json=json_fields({"prompt": prompt, **given}),
        headers=_once(idempotency_key) | ({"Prefer": f"wait={wait_seconds}"} if wait_seconds else {}),
        wait_seconds=wait_seconds,
    )


def retry(job_id: str, *, idempotency_key: str | None) -> Call[Job]:
    """`POST /v1/jobs/{id}/retry`."""
    headers = _once(idempotency_key)
    return Call("POST", f"/v1/jobs/{_part(job_id)}/retry", _as(job_of), is_repeatable=True, headers=headers)


def get_job(job_id: str, *, wait_seconds: float = 0) -> Call[Job]:
    """`GET /v1/jobs/{id}`; with `wait_seconds`, as soon as the job has ended."""
    return _get(
        f"/v1/jobs/{_part(job_id)}",
        _as(job_of),
        {"wait": f"{wait_seconds:g}"} if wait_seconds else {},
        wait_seconds=wait_seconds,
    )


def list_jobs(filters: Mapping[str, Any], cursor: str | None) -> Call[JobPage]:
    """`GET /v1/jobs`: one page."""
    wanted = {name: value for name, value in {**filters, "cursor": cursor}.items() if value is not None}
    return _get("/v1/jobs", _as(job_page_of), texts(wanted))


def list_usage(filters: Mapping[str, Any], cursor: str | None) -> Call[UsagePage]:
    """`GET /v1/usage`: one page, as long as the server allows."""
    asked = {"limit": 200, **filters, "cursor": cursor}
    wanted = {name: value for name, value in asked.items() if value is not None}
    wanted |= {name: str(wanted[name]) for name in ("since", "until") if name in wanted}
    return _get("/v1/usage", _as(usage_page_of), texts(wanted))


def cancel_job(job_id: str) -> Call[Job]:
    """`DELETE /v1/jobs/{id}`. It is not repeated, because a second one is answered with 409."""
    return Call("DELETE", f"/v1/jobs/{_part(job_id)}", _as(job_of), is_repeatable=False)


def delete_images(job_id: str) -> Call[None]:
    """`DELETE /v1/jobs/{id}/images`."""
    return Call("DELETE", f"/v1/jobs/{_part(job_id)}/images", _nothing, is_repeatable=True)


def erase_job(job_id: str) -> Call[None]:
    """`POST /v1/jobs/{id}/erase`. It is not repeated, because a second one is answered with 404."""
    return Call("POST", f"/v1/jobs/{_part(job_id)}/erase", _nothing, is_repeatable=False)


def find_image(job_id: str, index: int) -> Call[str]:
    """`GET /v1/jobs/{id}/images/{index}`: the presigned link of the redirect."""
    return _get(f"/v1/jobs/{_part(job_id)}/images/{index}", link_of)


def upload_csv(
    filename: str, content: bytes, form: Mapping[str, str | None], *, idempotency_key: str | None
) -> Call[Batch]:
    """`POST /v1/batches`. The server reads every row before it answers."""
    as_utf8("filename", filename)
    return Call(
        "POST",
        "/v1/batches",
        _as(batch_of),
        is_repeatable=True,
        headers=_once(idempotency_key),
        data=texts({name: value for name, value in form.items() if value is not None}),
        files={"file": (filename, content, "text/csv")},
        wait_seconds=SECONDS_A_ROW * max(content.count(b"\n"), content.count(b"\r")),
    )


def get_batch(batch_id: str) -> Call[Batch]:
    """`GET /v1/batches/{id}`."""
    return _get(f"/v1/batches/{_part(batch_id)}", _as(batch_of))


def cancel_batch(batch_id: str) -> Call[Batch]:
    """`DELETE /v1/batches/{id}`. Like `cancel_job`, it is not repeated."""
    return Call("DELETE", f"/v1/batches/{_part(batch_id)}", _as(batch_of), is_repeatable=False)


def retry_batch(batch_id: str, *, idempotency_key: str | None) -> Call[Batch]:
    """`POST /v1/batches/{id}/retry`."""
    path = f"/v1/batches/{_part(batch_id)}/retry"
    return Call(
        "POST",
        path,
        _as(batch_of),
        is_repeatable=True,
        headers=_once(idempotency_key),
        wait_seconds=MAX_BATCH_SECONDS,
    )


def get_results_file(batch_id: str) -> Call[bytes]:
    """`GET /v1/batches/{id}/results.csv`, unchanged."""
    return _get(f"/v1/batches/{_part(batch_id)}/results.csv", lambda response: response.content)


def get_report(batch_id: str, name: str) -> Call[list[dict[str, str]]]:
    """`GET /v1/batches/{id}/results.csv` or `errors.csv`: one dictionary per row, by column."""
    return _get(f"/v1/batches/{_part(batch_id)}/{name}.csv", _rows)


def send_file(content: bytes) -> Call[File]:
    """`POST /v1/files`. A repetition returns the same file, because its id is its content."""
    files = {"file": ("image", content, "application/octet-stream")}
    return Call("POST", "/v1/files", _as(file_of), is_repeatable=True, files=files)


def begin_upload(sha256: str, num_bytes: int, media_type: str) -> Call[File | PresignedUpload]:
    """`POST /v1/files/uploads`: a link to put the bytes at, or the file if it exists."""
    declared = {"sha256": sha256, "num_bytes": num_bytes, "media_type": media_type}
    return Call("POST", "/v1/files/uploads", _as(upload_of), is_repeatable=True, json=declared)


def complete_upload(file_id: str) -> Call[File]:
    """`POST /v1/files/{id}/complete`."""
    return Call("POST", f"/v1/files/{_part(file_id)}/complete", _as(file_of), is_repeatable=True)


def list_tiers() -> Call[list[Tier]]:
    """`GET /v1/tiers`."""
    return _get("/v1/tiers", _as(list_of("tiers", Tier)))


def list_models() -> Call[list[Model]]:
    """`GET /v1/models`."""
    return _get("/v1/models", _as(list_of("models", Model)))


def _get(
    path: str,
    read: Callable[[httpx2.Response], T],
    params: Mapping[str, str | int | Sequence[str]] | None = None,
    *,
    wait_seconds: float = 0,
) -> Call[T]:
    return Call("GET", path, read, is_repeatable=True, params=params or {}, wait_seconds=wait_seconds)


def _as(read: Callable[[Json], T]) -> Callable[[httpx2.Response], T]:
    return lambda response: read(json_object(response))


def _nothing(_response: httpx2.Response) -> None:
    return


def _rows(response: httpx2.Response) -> list[dict[str, str]]:
    text = response.content.decode("utf-8-sig")
    return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""))]


def _once(idempotency_key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": header("idempotency_key", idempotency_key or str(uuid.uuid4()))}


def _part(name: str) -> str:
    """An id, quoted as one segment of a path."""
    return quote(as_utf8("id", name), safe="")
