"""A job with its retries, their retries and so on, and which of them counts.

It reads them, and takes the lock that serializes two uploads which retry the same job. It creates no jobs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from catalogue.states import State
from storage.database import Database
from storage.job_views import JOB_COLUMNS, Job, job_from_row
from storage.tables import jobs

IDS_AT_ONCE = 5000


@dataclass(frozen=True)
class Tries:
    """A job, and the one that counts among it and its retries.

    That is one that succeeded, else one that has not ended, else the newest.
    """

    first: Job
    counting_id: str
    counting_state: State


def tries_of(db: Database, account_id: str, job_ids: Iterable[str]) -> dict[str, Tries]:
    """The tries of these jobs by job id, without images; jobs of other accounts are left out."""
    ids = list(job_ids)
    if not ids:
        return {}
    firsts = select(*JOB_COLUMNS).where(jobs.c.id.in_(ids), jobs.c.account_id == account_id)
    with db.transaction(account_id=account_id) as connection:
        found = {row.id: job_from_row(row) for row in connection.execute(firsts)}
        counting = connection.execute(_COUNTING, {"ids": list(found), "account_id": account_id}).all()
    return {row.first_id: Tries(found[row.first_id], row.id, State(row.state)) for row in counting}


def take_turn(connection: Connection, account_id: str) -> None:
    """Lock the retries of an account until the transaction ends; other uploads wait here."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(2, hashtext(:account_id))"), {"account_id": account_id}
    )


def retried(connection: Connection, job_ids: Sequence[str]) -> dict[str, str]:
    """The ids of existing retries of these jobs, by the id of the retried job."""
    query = text("SELECT retry_of, id FROM jobs WHERE retry_of = ANY(:ids)")
    found: dict[str, str] = {}
    for start in range(0, len(job_ids), IDS_AT_ONCE):
        ids = list(job_ids[start : start + IDS_AT_ONCE])
        found.update({row.retry_of: row.id for row in connection.execute(query, {"ids": ids})})
    return found


_COUNTING = text(
    """
    WITH RECURSIVE tries AS (
        SELECT id AS first_id, id, state, created_at FROM jobs
         WHERE id = ANY(:ids) AND account_id = :account_id
        UNION
        SELECT tries.first_id, jobs.id, jobs.state, jobs.created_at
          FROM tries JOIN jobs ON jobs.retry_of = tries.id AND jobs.account_id = :account_id
    )
    SELECT DISTINCT ON (first_id) first_id, id, state FROM tries
     ORDER BY first_id, state <> 'succeeded', state NOT IN ('queued', 'running'), created_at DESC, id DESC
    """
)
