"""Turns the rows of a CSV into new jobs and retries of old jobs.

A row that names an old job in `job_id`, as reports do, needs no new job if that job or a retry of it has
succeeded or has not ended; otherwise the job is retried with its seed. A row whose parameters were edited is
a new job. Owns these rules; `web.api.admission` decides what a job may ask for.
"""

import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from catalogue.parameters import FILES, PARAMETERS, PRESET_PARAMETERS, entries_of
from catalogue.states import WITHOUT_IMAGE, State
from storage import batches
from storage.batches import EarlierJob
from storage.identifiers import new_id
from storage.job_views import Job
from storage.new_jobs import NewJobs
from storage.retries import Tries, tries_of
from storage.submissions import NewJob
from web.api.admission import Files
from web.api.fetched_files import FetchedFiles
from web.api.input_files import files_named
from web.api.parameter_fields import OWN
from web.api.repeated_rows import RepeatedRows
from web.api.schemas import JOB_ID, JobRequest
from web.api.submission import not_repeatable, unrepeatable_tiers
from web.auth import account_id, key_id
from web.csv.header import COLUMNS
from web.csv.rows import CsvRow, refuse_rows
from web.refusals import MAX_ERRORS, FieldError, InvalidCsv, InvalidRequest, NotServed, quoted
from web.wiring import wired

Item = TypeVar("Item")

ROWS_AT_ONCE = 500
MAX_SHOWN_LINES = 20
_FILES = frozenset(FILES)
MIN_DEADLINE_SECONDS = 0.001
"""The resolution of a deadline in reports."""
PICTURE_FIELDS = ("model", *PARAMETERS)
"""The columns of a job on which its images depend."""


@dataclass
class Work:
    """What the rows of a CSV become. Close it after use."""

    jobs: NewJobs = field(default_factory=NewJobs)
    earlier: list[EarlierJob] = field(default_factory=list)
    retried: dict[str, str] = field(default_factory=dict)
    """The id of the retry, by the id of the job that it retries."""
    continued: set[str | None] = field(default_factory=set)
    """The batches of the old jobs that rows name; None for jobs without a batch."""
    edited_lines: list[int] = field(default_factory=list)
    """The lines of rows that name an old job but have other parameters."""

    def retry(self, tries: Tries) -> str:
        """The id of a new retry, chosen now, since another row of the file may name the same old job."""
        self.retried[tries.counting_id] = job_id = new_id("job")
        return job_id

    def close(self) -> None:
        """Delete the temporary file of the jobs."""
        self.jobs.close()

    @property
    def warnings(self) -> list[dict[str, str]]:
        """The warnings of the batch."""
        if not self.edited_lines:
            return []
        shown = ", ".join(map(str, self.edited_lines[:MAX_SHOWN_LINES]))
        num_more = len(self.edited_lines) - MAX_SHOWN_LINES
        more = f" and {num_more} more" if num_more > 0 else ""
        lines = "line" if len(self.edited_lines) == 1 else "lines"
        detail = (
            f"{lines} {shown}{more}: the parameters differ from those of the job in job_id, so a new job was "
            "made; cancel the batch if a spreadsheet has changed the parameters by mistake"
        )
        return [{"code": "rows_edited", "field": "job_id", "detail": detail}]


def work_of(rows: Iterable[CsvRow], defaults: Mapping[str, str]) -> Work:
    """The work for all rows; raises `InvalidCsv` with the errors of all rows if one is invalid.

    `defaults` apply to rows that leave a column empty and name no old job.
    """
    work = Work()
    try:
        _fill(work, rows, defaults)
    except BaseException:
        work.close()
        raise
    return work


def _fill(work: Work, rows: Iterable[CsvRow], defaults: Mapping[str, str]) -> None:
    reading = _Reading(work, defaults)
    lines, first_lines = array("i"), array("i")
    errors: list[FieldError] = []
    num_errors = 0
    try:
        for row, known in _with_known(rows):
            found = reading.add(row, known)
            lines.append(row.line)
            first_lines.append(row.first_line or 0)
            if found:
                num_errors += len(found)
                room = MAX_ERRORS - len(errors)
                errors += [FieldError(item.field, item.detail, row.line) for item in found[:room]]
    except InvalidCsv as error:
        # The file cannot be read from some line on; errors of the lines before are reported too.
        raise refuse_rows([*errors, *error.errors], num_errors=num_errors + error.num_errors) from error
    if errors:
        raise refuse_rows(errors, num_errors=num_errors)
    _put_under_first_lines(work, lines, first_lines)


def work_again(jobs: Iterable[Job]) -> Work:
    """Retries of a batch's jobs that ended without an image; raises `NotServed` by line."""
    work = Work()
    try:
        _fill_again(work, jobs)
    except BaseException:
        work.close()
        raise
    return work


def _fill_again(work: Work, jobs: Iterable[Job]) -> None:
    errors: list[FieldError] = []
    not_strict: list[FieldError] = []
    num_errors = num_not_strict = 0
    unrepeatable: frozenset[str] | None = None
    for page in _pages(jobs):
        tries = tries_of(wired().db, account_id(), [job.id for job in page])
        files = files_named(account_id(), (id for job in page for id in job.parameters.file_ids))
        for job in page:
            line, counting = job.batch_line or 0, tries[job.id]
            if not _is_left(counting) or counting.counting_id in work.retried:
                work.earlier.append(_earlier(work, line, counting))
                continue
            try:
                again = wired().admission.readmit(job, key_id=key_id(), files=files)
            except NotServed as error:
                num_errors += 1
                errors += [FieldError("model", error.detail, line)][: MAX_ERRORS - len(errors)]
                continue
            if again.parameters.needs_repeatable:
                unrepeatable = unrepeatable_tiers() if unrepeatable is None else unrepeatable
                if again.tier in unrepeatable:
                    num_not_strict += 1
                    found = replace(not_repeatable(again.tier), line=line)
                    not_strict += [found][: MAX_ERRORS - len(not_strict)]
            retry_id = work.retry(counting)
            work.jobs.add(
                replace(again, id=retry_id, retry_of=counting.counting_id, lane="bulk", batch_line=line)
            )
    if errors:
        more = f" (and {num_errors - 1} more)" if num_errors > 1 else ""
        detail = f"line {errors[0].line}: {errors[0].detail}{more}"
        raise NotServed(detail, errors, num_errors=num_errors)
    if not_strict:
        raise refuse_rows(not_strict, num_errors=num_not_strict)


def asked_of(job: Job) -> dict[str, Any]:
    """The request that would create this job again, with every parameter."""
    return {
        "model": job.model,
        **job.parameters.values(),
        "deadline_seconds": deadline_seconds(job),
        "webhook_url": job.webhook_url,
        "tag": job.tag,
    }


def deadline_seconds(job: Job) -> float | None:
    """The `deadline_seconds` of the job's request."""
    if job.deadline_at is None:
        return None
    # Postgres reads its clock for each of the two, some microseconds apart. No request may have 0.
    seconds = (job.deadline_at - job.created_at).total_seconds()
    return max(round(seconds, 3), MIN_DEADLINE_SECONDS)


@dataclass(frozen=True)
class _Known:
    """What some rows name: old jobs of the account with their retries, and its files."""

    tries: Mapping[str, Tries]
    files: Files


class _Reading:
    """Adds the rows of one file to `work`, one by one."""

    def __init__(self, work: Work, defaults: Mapping[str, str]) -> None:
        self._work = work
        self._defaults = defaults
        self._account_id, self._key_id = account_id(), key_id()
        self._admission = wired().admission
        self._repeated = RepeatedRows(self._admission.max_prompt_characters)

    def add(self, row: CsvRow, known: _Known) -> list[FieldError]:
        """Add the row to the work, or return all of its errors."""
        if row.errors and not row.cells:
            return list(row.errors)  # nothing else can be checked
        try:
            if row.job_id is None:
                return self._add_new(row, row.cells, known.files, self._request_of)
            if row.job_id in known.tries:
                return self._add_again(row, known.tries[row.job_id], known.files)
            detail = f"is not a job of this account: {quoted(row.job_id)}; leave the cell empty for a new job"
            return [*row.errors, FieldError("job_id", detail)]
        except InvalidRequest as error:
            return [replace(found, field=_column_of(found.field)) for found in error.errors]

    def _request_of(self, row: CsvRow, files: Files) -> JobRequest:
        return self._read({**self._defaults, **row.cells}, row, files)

    def _add_new(
        self,
        row: CsvRow,
        cells: Mapping[str, Any],
        files: Files,
        request_of: Callable[[CsvRow, Files], JobRequest],
        retry_of: Tries | None = None,
    ) -> list[FieldError]:
        """Add a job; `cells` say which rows are alike, and `request_of` reads the row if none was before."""

        def admit() -> NewJob:
            request = request_of(row, files)
            return self._admission.admit(
                request, self._account_id, key_id=self._key_id, lane="bulk", files=files
            )

        if row.errors:
            request_of(row, files)  # raises all errors
        job = self._repeated.job_of(cells, files, admit)
        if job.is_strict and job.shared.tier in self._unrepeatable_tiers:
            return [not_repeatable(job.shared.tier)]
        if retry_of is None:
            self._work.jobs.add_like(job.shared, row.line, job.texts, job.seed)
        else:
            retry_id = self._work.retry(retry_of)
            self._work.jobs.add_like(
                job.shared, row.line, job.texts, job.seed, id=retry_id, retry_of=retry_of.counting_id
            )
        return []

    def _add_again(self, row: CsvRow, tries: Tries, files: Files) -> list[FieldError]:
        work = self._work
        work.continued.add(tries.first.batch_id)
        had = asked_of(tries.first)
        asked: Mapping[str, Any] = had
        is_edited = False
        if row.errors or not _are_of(row.cells, had):
            if "preset" in row.cells:
                # Fields of a request override its preset, and these were not in the request.
                asked = {name: value for name, value in asked.items() if name not in PRESET_PARAMETERS}
            own = {**asked.get(OWN, {}), **row.cells.get(OWN, {})}
            asked = {**asked, **row.cells, OWN: own}
            request = self._read_again(asked, row, files)
            is_edited = "preset" in row.cells or not all(
                _is_same(getattr(request, name), had[name]) for name in PICTURE_FIELDS
            )
        if not is_edited and (not _is_left(tries) or tries.counting_id in work.retried):
            work.earlier.append(_earlier(work, row.line, tries))
            return []
        errors = self._add_new(
            row,
            asked,
            files,
            lambda row, files: self._read_again(asked, row, files),
            None if is_edited else tries,
        )
        if is_edited and not errors:
            work.edited_lines.append(row.line)
        return errors

    def _read_again(self, asked: Mapping[str, Any], row: CsvRow, files: Files) -> JobRequest:
        """Like `_read` without the model's limits: a row without a new job needs no model."""
        if not row.errors:
            with suppress(ValidationError):
                return JobRequest.model_validate(dict(asked))
        return self._read(asked, row, files)

    def _read(self, asked: Mapping[str, Any], row: CsvRow, files: Files) -> JobRequest:
        """The request of the row; raises `InvalidRequest` with all errors of its cells."""
        return self._admission.read(asked, found=row.errors, known=COLUMNS, files=files)

    @cached_property
    def _unrepeatable_tiers(self) -> frozenset[str]:
        return unrepeatable_tiers()


def _column_of(field: str) -> str:
    """The column of a field: a model's own parameter has its own, entries of a list share one."""
    name = field.removeprefix(f"{OWN}/")
    return name.partition("/")[0] if name.partition("/")[0] in PARAMETERS else name


def _are_of(cells: Mapping[str, Any], had: Mapping[str, Any]) -> bool:
    """Whether every cell is the value of the job, so that the row has no other parameters."""
    of_model = had[OWN]
    return all(_is_same(value, had.get(name)) for name, value in cells.items() if name != OWN) and all(
        _is_same(value, of_model.get(name)) for name, value in cells.get(OWN, {}).items()
    )


def _is_left(tries: Tries) -> bool:
    return tries.counting_state in WITHOUT_IMAGE


def _earlier(work: Work, line: int, tries: Tries) -> EarlierJob:
    job_id = work.retried.get(tries.counting_id, tries.counting_id)
    return EarlierJob(line, job_id, tries.counting_state is State.SUCCEEDED)


def _is_same(asked: object, had: object) -> bool:
    """Equal up to what spreadsheets change: they round numbers and drop byte-order marks."""
    if isinstance(asked, float) and isinstance(had, float):
        return math.isclose(asked, had, rel_tol=1e-6)
    if isinstance(asked, Mapping) and isinstance(had, Mapping):
        return asked.keys() == had.keys() and all(_is_same(asked[name], had[name]) for name in asked)
    if isinstance(asked, list) and isinstance(had, list):
        return len(asked) == len(had) and all(map(_is_same, map(_plain, asked), had))
    if isinstance(asked, str) and isinstance(had, str):
        return asked.replace("\ufeff", "") == had.replace("\ufeff", "")
    return asked == had


def _with_known(rows: Iterable[CsvRow]) -> Iterator[tuple[CsvRow, _Known]]:
    """Each row, with the old jobs and the files that it and its neighbours name."""
    fetched = FetchedFiles(account_id())
    for page in map(fetched.fetched, _pages(rows)):
        ids = {row.job_id for row in page if row.job_id is not None and re.fullmatch(JOB_ID, row.job_id)}
        tries = tries_of(wired().db, account_id(), ids)
        earlier = (asked for one in tries.values() for asked in one.first.parameters.file_ids)
        known = _Known(tries, files_named(account_id(), [*earlier, *_files_in(page)]))
        yield from ((row, known) for row in page)


def _files_in(page: Iterable[CsvRow]) -> Iterator[str]:
    for row in page:
        if not _FILES.isdisjoint(row.cells):
            for name in FILES:
                yield from entries_of(row.cells.get(name))


def _plain(value: object) -> object:
    """An adapter of a request in the form in which a job stores it."""
    return value.model_dump() if isinstance(value, BaseModel) else value


def _pages(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in pages; items before an unreadable line are yielded before its error is raised."""
    remaining = iter(items)
    while True:
        wired().db.extend_request()
        page: list[Item] = []
        try:
            page.extend(islice(remaining, ROWS_AT_ONCE))
        except InvalidCsv:
            yield page
            raise
        if not page:
            return
        yield page


def _put_under_first_lines(work: Work, lines: "array[int]", first_lines: "array[int]") -> None:
    """Give the work the line numbers of the file that was uploaded first, each used by one row.

    A row without such a number (0), or with the number of an earlier row, gets one above all of these and
    above every line of the batches that the file continues: clients save images under these numbers.
    """
    if not any(first_lines):
        return
    row_of: dict[int, int] = {}
    for line, first in zip(lines, first_lines, strict=True):
        if first:
            row_of.setdefault(first, line)
    if not work.continued and len(row_of) < len(lines):
        return  # the file has such a column but is not a report
    line_of = {line: first for first, line in row_of.items()}
    highest = max(max(row_of), batches.highest_line(wired().db, account_id(), filter(None, work.continued)))
    others = [line for line in lines if line not in line_of]
    line_of.update({line: number for number, line in enumerate(others, highest + 1)})
    work.jobs.line_of = line_of
    work.earlier = [replace(one, line=line_of[one.line]) for one in work.earlier]
