"""CSV batches: many jobs that are created at once and read as one resource.

A batch stores no state: its state follows from the counts of its jobs (`storage.counts`) at every read, so it
always agrees with them.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from catalogue.states import TERMINAL, State
from storage import jobs as transitions
from storage import new_jobs, usage
from storage.counts import of_batches
from storage.database import LONG_SECONDS, Database
from storage.deliveries import complete_batches
from storage.errors import IdempotencyMismatch, JobIsFinal, NotFound
from storage.identifiers import new_id
from storage.job_views import Job, list_jobs
from storage.new_jobs import NewJobs
from storage.retries import retried, take_turn
from storage.submissions import NewJob
from storage.tables import batches
from storage.usage import ByCurrency


@dataclass(frozen=True)
class Batch:
    """A batch and how many of its jobs are in each state.

    `reading` is what its creator stored about how the file was read; its `rows` are counts by outcome. `used`
    is what its jobs used so far.
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
    used: ByCurrency = field(default_factory=dict)

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


@dataclass(frozen=True, slots=True)
class EarlierJob:
    """A row without a job of its own, since an earlier job of the same request succeeded or is still open."""

    line: int
    job_id: str
    has_succeeded: bool


CREATE_SECONDS = 300.0
"""For the transaction that inserts a batch with all of its jobs, which may be 100,000."""
_PLAIN_COLUMNS = [batches.c[name] for name in ("id", "account_id", "filename", "num_jobs", "created_at")]
_COLUMNS = [*_PLAIN_COLUMNS, batches.c.webhook_url, batches.c.reading]


def create(
    db: Database,
    account_id: str,
    filename: str,
    rows: NewJobs | Sequence[NewJob],
    *,
    earlier_jobs: Sequence[EarlierJob] = (),
    reading: dict[str, Any] | None = None,
    webhook_url: str | None = None,
    idempotency_key: str | None = None,
    request_hash: str | None = None,
    traceparent: str | None = None,
) -> tuple[Batch, bool]:
    """Insert a batch and all of its jobs in one transaction.

    A row that retries a job which was just retried by another upload gets no job. Returns `(batch, False)` if
    the idempotency key created it before; raises `IdempotencyMismatch` and `FileGone`.
    """
    batch_id = new_id("bat")

    def work(connection: Connection, new: NewJobs) -> Batch | None:
        retried_meanwhile = _retried_meanwhile(connection, account_id, new)
        omitted, instead = _omitted(new, retried_meanwhile)
        again = [replace(one, job_id=instead.get(one.job_id, one.job_id)) for one in earlier_jobs]
        earlier = [*again, *omitted]
        num_jobs = len(new) - len(omitted)
        values = {
            "id": batch_id,
            "account_id": account_id,
            "filename": filename,
            "num_jobs": num_jobs,
            "reading": {
                **(reading or {}),
                "rows": _row_counts(num_jobs, len(new.retries) - len(omitted), earlier),
            },
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
        if num_jobs:
            new_jobs.insert(
                connection,
                account_id,
                batch_id,
                new,
                traceparent=traceparent,
                without_retries_of=retried_meanwhile,
            )
        else:
            complete_batches(connection, [batch_id])
        # Read before the commit, after which nothing may fail.
        return _with_counts(connection, [row])[0]

    with nullcontext(rows) if isinstance(rows, NewJobs) else NewJobs(rows) as new:
        batch = db.run(partial(work, new=new), seconds=CREATE_SECONDS, account_id=account_id)
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

    Pass `with_reading=False` in roles that have no right to read that column, nor what its jobs used.
    """
    columns = _COLUMNS if with_reading else _PLAIN_COLUMNS
    query = select(*columns).where(batches.c.id == batch_id, batches.c.account_id == account_id)
    with db.transaction(account_id=account_id) as connection:
        row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound(f"no batch {batch_id!r}")
        found = _with_counts(connection, [row])
        return (_with_usage(connection, found) if with_reading else found)[0]


def list_batches(
    db: Database, account_id: str, *, limit: int = 50, before: tuple[datetime, str] | None = None
) -> list[Batch]:
    """The account's batches, newest first; `before` is the `(created_at, id)` of the previous page's last."""
    query = select(*_COLUMNS).where(batches.c.account_id == account_id)
    if before is not None:
        query = query.where(tuple_(batches.c.created_at, batches.c.id) < before)
    query = query.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)
    with db.transaction(account_id=account_id) as connection:
        return _with_usage(connection, _with_counts(connection, connection.execute(query).all()))


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

    with db.transaction(account_id=account_id) as connection:
        connection.execute(flag)
    # In parts, so that no transaction holds thousands of locks. If a part fails, the parts before it stand,
    # and the next call cancels the others.
    while db.run(
        lambda connection: transitions.cancel_part_of_batch(connection, batch_id),
        seconds=LONG_SECONDS,
        account_id=account_id,
    ):
        pass
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
    ids = [*batch_ids]
    if not ids:
        return 0
    # The highest of each batch is at the end of its part of an index.
    query = text(
        """SELECT max(highest.batch_line) FROM batches
            CROSS JOIN LATERAL (SELECT batch_line FROM jobs
                                 WHERE batch_id = batches.id
                                 ORDER BY batch_line DESC LIMIT 1) AS highest
            WHERE batches.id = ANY(:ids) AND batches.account_id = :account_id"""
    )
    with db.transaction(account_id=account_id) as connection:
        return connection.execute(query, {"ids": ids, "account_id": account_id}).scalar_one() or 0


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
        # One may have been erased since.
        yield from (replace(by_id[job_id], batch_line=line) for line, job_id in page if job_id in by_id)


def _retried_meanwhile(connection: Connection, account_id: str, new: NewJobs) -> Mapping[str, str]:
    """The retries that another upload has just made of jobs that these jobs retry, by the retried job.

    This keeps two simultaneous uploads of the same file from running it twice.
    """
    if not new.retries:
        return {}
    take_turn(connection, account_id)
    return retried(connection, new.retries)


def _omitted(new: NewJobs, retried_by: Mapping[str, str]) -> tuple[list[EarlierJob], dict[str, str]]:
    """The rows whose jobs are not needed, with the job that counts, which is given by the omitted id too."""
    if not retried_by:
        return [], {}
    omitted: list[EarlierJob] = []
    instead: dict[str, str] = {}
    for one in new.retrying(retried_by):
        job_id = retried_by[one.retry_of]
        omitted.append(EarlierJob(one.line, job_id, has_succeeded=False))
        instead[one.id] = job_id
    return omitted, instead


def _row_counts(num_jobs: int, num_retried: int, earlier: Sequence[EarlierJob]) -> dict[str, int]:
    num_succeeded = sum(one.has_succeeded for one in earlier)
    return {
        "new": num_jobs - num_retried,
        "retried": num_retried,
        "already_succeeded": num_succeeded,
        "still_open": len(earlier) - num_succeeded,
    }


def _with_usage(connection: Connection, found: Sequence[Batch]) -> list[Batch]:
    used = usage.of_batches(connection, [batch.id for batch in found])
    return [replace(batch, used=used.get(batch.id, {})) for batch in found]


def _with_counts(connection: Connection, rows: Sequence[Row[Any]]) -> list[Batch]:
    counts: dict[str, dict[str, int]] = {}
    last: dict[str, list[datetime]] = {}
    for found_counts in of_batches(connection, [row.id for row in rows]):
        of_batch = counts.setdefault(found_counts.batch_id, {})
        for state, count in found_counts.by_state.items():
            if count:
                of_batch[state] = of_batch.get(state, 0) + count
        if found_counts.finished_at is not None:
            last.setdefault(found_counts.batch_id, []).append(found_counts.finished_at)
    found = []
    for row in rows:
        batch = Batch(
            row.id, row.account_id, row.filename, row.num_jobs, counts.get(row.id, {}), row.created_at, None
        )
        finished_at = None if batch.state == "running" else max(last.get(row.id, [row.created_at]))
        beside = {name: row._mapping[name] for name in ("webhook_url", "reading") if name in row._mapping}
        found.append(replace(batch, finished_at=finished_at, **beside))
    return found
