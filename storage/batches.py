"""CSV batches: many jobs that are created at once and read as one resource.

A batch stores no state: its state is computed from its jobs at every read, so it always agrees with them.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from catalogue.states import TERMINAL, State
from storage import jobs as transitions
from storage.database import LONG_SECONDS, Database
from storage.deliveries import complete_batches
from storage.errors import IdempotencyMismatch, JobIsFinal, NotFound
from storage.identifiers import new_id
from storage.job_views import Job, list_jobs
from storage.retries import retried, take_turn
from storage.submissions import NewJob, insert_rows
from storage.tables import batches, jobs


@dataclass(frozen=True)
class Batch:
    """A batch and how many of its jobs are in each state.

    `reading` is what its creator stored about how the file was read; its `rows` are counts by outcome.
    """

    id: str
    account_id: str
    filename: str
    num_jobs: int
    counts: dict[str, int]
    created_at: datetime
    finished_at: datetime | None
    webhook_url: str | None = None
    reading: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """`running`, or the final state that follows from its jobs."""
        if sum(self.counts.get(state, 0) for state in TERMINAL) < self.num_jobs:
            return "running"
        succeeded = self.counts.get(State.SUCCEEDED, 0)
        if succeeded == self.num_jobs:
            return "succeeded"  # includes a batch without jobs, whose rows all have earlier jobs
        if succeeded:
            return "partially_failed"
        return "canceled" if self.counts.get(State.CANCELED, 0) == self.num_jobs else "failed"


@dataclass(frozen=True)
class EarlierJob:
    """A row without a job of its own, since an earlier job of the same request succeeded or is still open."""

    line: int
    job_id: str
    has_succeeded: bool


_PLAIN_COLUMNS = [batches.c[name] for name in ("id", "account_id", "filename", "num_jobs", "created_at")]
_COLUMNS = [*_PLAIN_COLUMNS, batches.c.webhook_url, batches.c.reading]


def create(
    db: Database,
    account_id: str,
    filename: str,
    rows: Sequence[NewJob],
    *,
    redispatch_seconds: float,
    earlier_jobs: Sequence[EarlierJob] = (),
    reading: dict[str, Any] | None = None,
    webhook_url: str | None = None,
    idempotency_key: str | None = None,
    request_hash: str | None = None,
) -> tuple[Batch, bool]:
    """Insert a batch and all of its jobs in one transaction.

    A row that retries a job which was just retried by another upload gets no job. Returns `(batch, False)` if
    the idempotency key created it before; raises `IdempotencyMismatch` and `FileGone`.
    """
    batch_id = new_id("bat")

    def work(connection: Connection) -> Batch | None:
        to_run, meanwhile = _without_retried(connection, account_id, rows)
        instead = {row.id: found.job_id for row, found in meanwhile}
        again = [replace(one, job_id=instead.get(one.job_id, one.job_id)) for one in earlier_jobs]
        earlier = [*again, *(found for _, found in meanwhile)]
        values = {
            "id": batch_id,
            "account_id": account_id,
            "filename": filename,
            "num_jobs": len(to_run),
            "reading": {**(reading or {}), "rows": _row_counts(to_run, earlier)},
            "earlier_jobs": [[one.line, one.job_id] for one in earlier],
            "webhook_url": webhook_url,
            "idempotency_key": idempotency_key,
            "request_hash": request_hash,
            "created_at": func.clock_timestamp(),
        }
        insert_once = (
            insert(batches)
            .values(values)
            .on_conflict_do_nothing(index_elements=["account_id", "idempotency_key"])
        )
        row = connection.execute(insert_once.returning(*_COLUMNS)).one_or_none()
        if row is None:
            return None
        if to_run:
            insert_rows(connection, [replace(row, batch_id=batch_id) for row in to_run], redispatch_seconds)
        else:
            complete_batches(connection, [batch_id])
        # Read before the commit, after which nothing may fail.
        return _with_counts(connection, [row])[0]

    batch = db.run(work, seconds=LONG_SECONDS, account_id=account_id)
    if batch is not None:
        return batch, True
    earlier = made_before(db, account_id, idempotency_key, request_hash)
    assert earlier is not None
    return earlier, False


def made_before(
    db: Database, account_id: str, idempotency_key: str | None, request_hash: str | None
) -> Batch | None:
    """The batch that this idempotency key created before, or `None`; raises `IdempotencyMismatch`."""
    if idempotency_key is None:
        return None
    query = select(batches.c.id, batches.c.request_hash).where(
        batches.c.account_id == account_id, batches.c.idempotency_key == idempotency_key
    )
    with db.transaction(account_id=account_id) as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.request_hash != request_hash:
        raise IdempotencyMismatch("this Idempotency-Key was used before with another request")
    return get(db, account_id, row.id)


def get(db: Database, account_id: str, batch_id: str, *, with_reading: bool = True) -> Batch:
    """The account's batch; raises `NotFound`, also for another account's batch.

    Pass `with_reading=False` in roles that have no right to read that column.
    """
    columns = _COLUMNS if with_reading else _PLAIN_COLUMNS
    query = select(*columns).where(batches.c.id == batch_id, batches.c.account_id == account_id)
    with db.transaction(account_id=account_id) as connection:
        row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound(f"no batch {batch_id!r}")
        return _with_counts(connection, [row])[0]


def list_batches(
    db: Database, account_id: str, *, limit: int = 50, before: tuple[datetime, str] | None = None
) -> list[Batch]:
    """The account's batches, newest first; `before` is the `(created_at, id)` of the previous page's last."""
    query = select(*_COLUMNS).where(batches.c.account_id == account_id)
    if before is not None:
        query = query.where(tuple_(batches.c.created_at, batches.c.id) < before)
    query = query.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)
    with db.transaction(account_id=account_id) as connection:
        return _with_counts(connection, connection.execute(query).all())


def cancel(db: Database, account_id: str, batch_id: str) -> Batch:
    """Cancel the open jobs of the batch; raises `NotFound` or `JobIsFinal`."""
    batch = get(db, account_id, batch_id)
    if batch.state != "running":
        raise JobIsFinal(f"batch {batch_id!r} is {batch.state} and cannot be canceled")
    flag = (
        update(batches)
        .where(batches.c.id == batch_id)
        .values(cancel_requested_at=func.coalesce(batches.c.cancel_requested_at, func.clock_timestamp()))
    )

    def work(connection: Connection) -> None:
        # Locks jobs before their batch, in the same order as the end of the last job.
        transitions.cancel_batch(connection, batch_id)
        connection.execute(flag)

    db.run(work, seconds=LONG_SECONDS, account_id=account_id)
    return get(db, account_id, batch_id)


def jobs_of(db: Database, account_id: str, batch_id: str) -> Iterator[Job]:
    """The job of every row of the file, in the file's order, read in pages.

    For a row in `earlier_jobs` it is the earlier job, with the line of the row.
    """
    get(db, account_id, batch_id)
    query = select(batches.c.earlier_jobs).where(batches.c.id == batch_id, batches.c.account_id == account_id)
    with db.transaction(account_id=account_id) as connection:
        earlier = sorted((line, job_id) for line, job_id in connection.execute(query).scalar_one())
    both = _own_jobs(db, account_id, batch_id), _earlier_jobs(db, account_id, earlier)
    return heapq.merge(*both, key=lambda job: job.batch_line or 0)


def highest_line(db: Database, account_id: str, batch_ids: Iterable[str]) -> int:
    """The highest line of any job of these batches; 0 without jobs."""
    query = select(func.max(jobs.c.batch_line)).where(
        jobs.c.account_id == account_id, jobs.c.batch_id.in_(list(batch_ids))
    )
    with db.transaction(account_id=account_id) as connection:
        return connection.execute(query).scalar_one() or 0


def _own_jobs(db: Database, account_id: str, batch_id: str) -> Iterator[Job]:
    line = 0
    page_size = 500
    while True:
        page = list_jobs(db, account_id, batch_id=batch_id, after_line=line, limit=page_size)
        yield from page
        if len(page) < page_size:
            return
        line = page[-1].batch_line or 0


def _earlier_jobs(db: Database, account_id: str, rows: Sequence[tuple[int, str]]) -> Iterator[Job]:
    page_size = 500
    for start in range(0, len(rows), page_size):
        page = rows[start : start + page_size]
        found = list_jobs(db, account_id, ids=[job_id for _, job_id in page], limit=page_size)
        by_id = {job.id: job for job in found}
        yield from (replace(by_id[job_id], batch_line=line) for line, job_id in page)


def _without_retried(
    connection: Connection, account_id: str, rows: Sequence[NewJob]
) -> tuple[list[NewJob], list[tuple[NewJob, EarlierJob]]]:
    """Split the rows into those to run, and those that another upload has just retried, with its job.

    This keeps two simultaneous uploads of the same file from running it twice.
    """
    retries = [row.retry_of for row in rows if row.retry_of is not None]
    if not retries:
        return list(rows), []
    take_turn(connection, account_id)
    found = retried(connection, retries)
    to_run = [row for row in rows if row.retry_of not in found]
    meanwhile = [
        (row, EarlierJob(row.batch_line or 0, found[row.retry_of], has_succeeded=False))
        for row in rows
        if row.retry_of in found
    ]
    return to_run, meanwhile


def _row_counts(to_run: Sequence[NewJob], earlier: Sequence[EarlierJob]) -> dict[str, int]:
    num_retried = sum(row.retry_of is not None for row in to_run)
    num_succeeded = sum(one.has_succeeded for one in earlier)
    return {
        "new": len(to_run) - num_retried,
        "retried": num_retried,
        "already_succeeded": num_succeeded,
        "still_open": len(earlier) - num_succeeded,
    }


def _with_counts(connection: Connection, rows: Sequence[Row[Any]]) -> list[Batch]:
    query = (
        select(jobs.c.batch_id, jobs.c.state, func.count(), func.max(jobs.c.finished_at))
        .where(jobs.c.batch_id.in_([row.id for row in rows]))
        .group_by(jobs.c.batch_id, jobs.c.state)
    )
    counts: dict[str, dict[str, int]] = {}
    last: dict[str, list[datetime]] = {}
    for batch_id, state, count, finished_at in connection.execute(query):
        counts.setdefault(batch_id, {})[state] = count
        if finished_at is not None:
            last.setdefault(batch_id, []).append(finished_at)
    found = []
    for row in rows:
        batch = Batch(
            row.id, row.account_id, row.filename, row.num_jobs, counts.get(row.id, {}), row.created_at, None
        )
        finished_at = None if batch.state == "running" else max(last.get(row.id, [row.created_at]))
        beside = {name: row._mapping[name] for name in ("webhook_url", "reading") if name in row._mapping}
        found.append(replace(batch, finished_at=finished_at, **beside))
    return found
