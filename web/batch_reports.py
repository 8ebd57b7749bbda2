"""What a batch gives back as CSV: its results, and its rows that came to nothing."""

from collections.abc import Iterable, Iterator

from storage.job_views import Job
from storage.states import State
from web.csv_rows import write_csv
from web.resources import image_url

RESULT_COLUMNS = ("line", "prompt", "state", "job_id", "seed", "images", "error", "warnings", "output_format")
ERROR_COLUMNS = ("line", "prompt", "state", "job_id", "error_code", "retryable", "error")
WITHOUT_IMAGE = frozenset({State.FAILED, State.EXPIRED, State.CANCELED})


def result_lines(jobs: Iterable[Job]) -> Iterator[str]:
    """Every job as it is now; `images` holds this API's links, a space between two."""
    return write_csv(RESULT_COLUMNS, map(_result, jobs))


def error_lines(jobs: Iterable[Job]) -> Iterator[str]:
    """The jobs that ended without an image, and why."""
    return write_csv(ERROR_COLUMNS, (_error(job) for job in jobs if job.state in WITHOUT_IMAGE))


def _result(job: Job) -> tuple[object, ...]:
    links = " ".join(image_url(job.id, image.index) for image in job.images if image.deleted_at is None)
    warnings = "; ".join(f"{warning['field']}: {warning['detail']}" for warning in job.warnings)
    standing = (job.batch_line, job.prompt, job.state.value, job.id, job.seed)
    return (*standing, links, _reason(job), warnings, job.output_format)


def _error(job: Job) -> tuple[object, ...]:
    retryable = "" if job.error_retryable is None else str(job.error_retryable).lower()
    return (job.batch_line, job.prompt, job.state.value, job.id, job.error_code, retryable, _reason(job))


def _reason(job: Job) -> str:
    if job.state is State.FAILED:
        return f"{job.error_code}: {job.error_detail or ''}".removesuffix(": ")
    return {State.EXPIRED: "its deadline passed before a worker was free"}.get(job.state, "")
