"""What a batch gives back as CSV: its results, and its rows that came to nothing.

Both can be uploaded again: every parameter is in them, and the job that each row speaks of.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from catalogue.parameters import in_one_text
from storage.job_views import Job
from storage.states import WITHOUT_IMAGE, State
from web.api.batch_rows import asked_of
from web.api.resources import image_url
from web.csv.header import COLUMNS, DELIMITERS
from web.csv.writing import write_csv
from web.wiring import wired

BEFORE = ("line", "prompt", "state", "job_id")
PARAMETERS = tuple(
    name for name in COLUMNS if name not in ("prompt", "preset")
)  # a preset came to its values
AFTER = ("images", "error_code", "retryable", "error", "warnings", "retry_of")
REPORTED = (*BEFORE, *PARAMETERS, *AFTER)
"""The columns of every report; those of the models' own parameters stand before the last of these."""


class ReportQuery(BaseModel):
    """How a report is written."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    bom: bool = Field(True, description="Begin with a byte-order mark, without which Excel misreads UTF-8.")
    delimiter: Literal["comma", "semicolon", "tab"] = Field(
        "comma",
        description="`semicolon` for Excel where decimals have commas; they have them in the file too.",
    )


def result_lines(jobs: Iterable[Job], query: ReportQuery) -> Iterator[str]:
    """Every job as it is now; `images` holds this API's links, a space between two."""
    own = tuple(wired().catalogue.pipeline_types)
    rows = (_cells(job, own) for job in jobs)
    titles = (*BEFORE, *PARAMETERS, *own, *AFTER)
    return write_csv(titles, rows, delimiter=DELIMITERS[query.delimiter], marked=query.bom)


def error_lines(jobs: Iterable[Job], query: ReportQuery) -> Iterator[str]:
    """The jobs that ended without an image, and why."""
    return result_lines((job for job in jobs if job.state in WITHOUT_IMAGE), query)


def _cells(job: Job, own: Sequence[str]) -> list[object]:
    links = " ".join(image_url(job.id, image.index) for image in job.images if image.deleted_at is None)
    warnings = "; ".join(f"{warning['field']}: {warning['detail']}" for warning in job.warnings)
    asked = asked_of(job)
    before = (job.batch_line, job.parameters.prompt, job.state.value, job.id)
    after = (links, job.error_code, job.error_retryable, _reason(job), warnings, job.retry_of)
    values = (job.parameters.pipeline_parameters.get(name) for name in own)
    return [*before, *(in_one_text(asked[name]) for name in PARAMETERS), *values, *after]


def _reason(job: Job) -> str:
    if job.state is State.FAILED:
        return f"{job.error_code}: {job.error_detail or ''}".removesuffix(": ")
    return {State.EXPIRED: "its deadline passed before a worker was free"}.get(job.state, "")
