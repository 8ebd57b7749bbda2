"""The birth of a job: a validated request becomes a queued row, once for each idempotency key.

It commits and does nothing else; ringing the bell is its caller's next step. What may happen to the
row afterwards is `storage.jobs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby

from sqlalchemy import Connection, bindparam, select, text
from sqlalchemy.dialects.postgresql import insert

from catalogue.parameters import PARAMETERS, Parameters
from storage import files
from storage.database import Database
from storage.errors import IdempotencyMismatch
from storage.identifiers import new_id
from storage.job_views import JOB_COLUMNS, Job, get, job_from_row
from storage.tables import jobs


@dataclass(frozen=True)
class NewJob:
    """A validated request, ready to become a row; its fields and parameters are named as the columns are."""

    account_id: str
    model: str
    tier: str
    lane: str
    parameters: Parameters
    deadline_seconds: float | None = None
    webhook_url: str | None = None
    idempotency_key: str | None = None
    request_hash: str | None = None
    batch_id: str | None = None
    batch_line: int | None = None
    retry_of: str | None = None
    id: str | None = None  # drawn when it is inserted, unless somebody has to know it before


def create(db: Database, new: NewJob, *, redispatch_seconds: float) -> tuple[Job, bool]:
    """Insert a queued job; `(job, False)` when its idempotency key made it before.

    Raises `IdempotencyMismatch` when the key was used for another request, and `FileGone` where a file that
    it names was deleted meanwhile.
    """

    # A replay is no error: as a violated constraint it would stand in Postgres' log with its prompt.
    insert_once = _INSERT.on_conflict_do_nothing(index_elements=["account_id", "idempotency_key"])

    def work(connection: Connection) -> Job | None:
        # Read back before the commit: once it is accepted, nothing may fail any more.
        row = connection.execute(insert_once.returning(*JOB_COLUMNS), _row(new, redispatch_seconds))
        made = row.one_or_none()
        if made is None:
            return None
        files.link(connection, new.account_id, [(made.id, new.parameters.file_ids)])
        return job_from_row(made)

    job = db.run(work, account_id=new.account_id)
    if job is not None:
        return job, True
    earlier = made_before(db, new.account_id, new.idempotency_key, new.request_hash)
    assert earlier is not None
    return earlier, False


def made_before(
    db: Database, account_id: str, idempotency_key: str | None, request_hash: str | None
) -> Job | None:
    """The job that this idempotency key made before, if any; raises `IdempotencyMismatch`."""
    if idempotency_key is None:
        return None
    query = select(*JOB_COLUMNS).where(
        jobs.c.account_id == account_id, jobs.c.idempotency_key == idempotency_key
    )
    with db.transaction(account_id=account_id) as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.request_hash != request_hash:
        raise IdempotencyMismatch("this Idempotency-Key was used before with another request")
    return get(db, account_id, row.id)


def insert_rows(connection: Connection, new_jobs: Sequence[NewJob], redispatch_seconds: float) -> None:
    """Insert queued rows, many a statement; raises `FileGone`."""
    rows = [_row(new, redispatch_seconds) for new in new_jobs]
    connection.execute(_INSERT, rows)
    for account_id, of_account in groupby(
        zip(new_jobs, rows, strict=True), key=lambda pair: pair[0].account_id
    ):
        files.link(
            connection, account_id, [(str(row["new_id"]), new.parameters.file_ids) for new, row in of_account]
        )


def _row(new: NewJob, redispatch_seconds: float) -> dict[str, object]:
    """An interactive row counts as rung: its caller rings after the commit. A bulk row is due at once,
    for the sweeper."""
    dispatched = new.lane == "interactive"
    values = {name: getattr(new, name) for name in _FIELDS} | new.parameters.values()
    return {f"new_{name}": value for name, value in values.items()} | {
        "new_id": new.id or new_id("job"),
        "is_dispatched": dispatched,
        "wait_seconds": redispatch_seconds if dispatched else 0.0,
    }


_FIELDS = [field.name for field in fields(NewJob) if field.name not in ("id", "parameters")]
# A job that names a receiver which nothing is sent to now says so from the start.
_WARNINGS = """(
    SELECT coalesce(jsonb_agg(jsonb_build_object(
               'code', 'webhook_receiver_paused', 'field', 'webhook_url',
               'detail', 'nothing is sent to ' || receiver || ' at present: it has failed for days')), '[]')
      FROM webhook_receivers
     WHERE account_id = :new_account_id AND state = 'paused'
       AND receiver = webhook_receiver(CAST(:new_webhook_url AS text)))"""
_INSERT = insert(jobs).values(
    {name: bindparam(f"new_{name}") for name in ("id", *_FIELDS, *PARAMETERS) if name != "deadline_seconds"}
    | {
        "dispatch_seq": text("CAST(:is_dispatched AS boolean)::int"),
        "dispatch_number": text("CASE WHEN :is_dispatched THEN nextval('dispatch_numbers') END"),
        "dispatched_at": text("CASE WHEN :is_dispatched THEN clock_timestamp() END"),
        "next_dispatch_at": text("clock_timestamp() + make_interval(secs => :wait_seconds)"),
        "warnings": text(_WARNINGS),
        "deadline_at": text("clock_timestamp() + make_interval(secs => :new_deadline_seconds)"),
    }
)
