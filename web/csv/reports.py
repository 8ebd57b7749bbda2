"""The reports of a batch as CSV: its results, and its rows that ended without an image.

Both can be uploaded again: they contain every parameter, and the id of each row's job. Spreadsheets in any
locale can read them, and none runs a cell as a formula. Pure: the route passes the jobs and the addresses.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from catalogue.parameters import in_one_text
from catalogue.states import WITHOUT_IMAGE, State
from storage.job_views import Job
from web.api.addresses import Addresses
from web.api.batch_rows import asked_of
from web.api.parameter_fields import OWN
from web.csv.cells import harmless
from web.csv.header import COLUMNS, DELIMITERS

BYTE_ORDER_MARK = "\ufeff"
BEFORE = ("line", "prompt", "state", "job_id")
PARAMETERS = tuple(
    name for name in COLUMNS if name not in ("prompt", "preset")
)  # a job has the values of its preset instead
AFTER = ("images", "error_code", "retryable", "error", "warnings", "retry_of")
REPORTED = (*BEFORE, *PARAMETERS, *AFTER)
"""The columns of every report; columns of models' own parameters are inserted before `AFTER`."""


class ReportQuery(BaseModel):
    """The format of a report."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    bom: bool = Field(True, description="Begin with a byte-order mark; without it Excel misreads UTF-8.")
    delimiter: Literal["comma", "semicolon", "tab"] = Field(
        "comma",
        description="`semicolon` is for Excel where decimals have commas; it writes decimals with commas.",
    )


def result_lines(
    jobs: Iterable[Job], query: ReportQuery, own: Sequence[str], addresses: Addresses
) -> Iterator[str]:
    """The lines of every job in its current state; `own` are the names of models' own parameters.

    `images` has this API's permanent links, separated by spaces.
    """
    rows = (_cells(job, own, addresses) for job in jobs)
    titles = (*BEFORE, *PARAMETERS, *own, *AFTER)
    return write_csv(titles, rows, delimiter=DELIMITERS[query.delimiter], marked=query.bom)


def error_lines(
    jobs: Iterable[Job], query: ReportQuery, own: Sequence[str], addresses: Addresses
) -> Iterator[str]:
    """The lines of the jobs that ended without an image, and why."""
    return result_lines((job for job in jobs if job.state in WITHOUT_IMAGE), query, own, addresses)


def _cells(job: Job, own: Sequence[str], addresses: Addresses) -> list[object]:
    existing = [image for image in job.images if image.is_there]
    links = " ".join(addresses.of_image(job.id, image.index) for image in existing)
    warnings = "; ".join(f"{warning.field}: {warning.detail}" for warning in job.warnings)
    asked = asked_of(job)
    before = (job.batch_line, job.parameters.prompt, job.state.value, job.id)
    after = (links, job.error_code, job.error_retryable, _reason(job), warnings, job.retry_of)
    values = (asked[OWN].get(name) for name in own)
    return [*before, *(in_one_text(asked[name]) for name in PARAMETERS), *values, *after]


def _reason(job: Job) -> str:
    if job.state is State.FAILED:
        return f"{job.error_code}: {job.error_detail or ''}".removesuffix(": ")
    return {State.EXPIRED: "the deadline passed before a worker started the job"}.get(job.state, "")


def write_csv(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, delimiter: str = ",", marked: bool = False
) -> Iterator[str]:
    """CSV text, one piece per row, with formula-like cells escaped.

    With semicolons decimals have a comma, as in the countries whose Excel uses semicolons. `marked` writes a
    byte-order mark first, without which Excel takes UTF-8 for its own code page.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    if marked:
        buffer.write(BYTE_ORDER_MARK)
    writer.writerow(header)
    yield _taken(buffer)
    for row in rows:
        writer.writerow([_written(cell, delimiter) for cell in row])
        yield _taken(buffer)


def _written(cell: object, delimiter: str) -> object:
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and delimiter == ";":
        return str(cell).replace(".", ",")
    return harmless(cell)


def _taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text
