"""Jobs whose lease ran out while they ran alone: whether their process crashed is found out later.

`storage.jobs.reap` notes them. Such a process is heard of again, is found dead, or stays silent; only then is
it known whether the job is charged with a crash. This module does not know what a charge leads to.
"""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, text

from storage.database import Database

MAX_SETTLED = 100


def settle_dead(connection: Connection, boot_id: str, on_device: Collection[str] | None) -> list[str]:
    """Charge the open jobs that a dead process ran alone when their leases ran out; returns their ids.

    A process whose worker was heard of since then lived on, so that the job did not crash it. Nor did a job
    that is not among `on_device`, those that were on the device at its end; `None` if these are unknown.
    """
    parameters = {"boot_id": boot_id, "is_unknown": on_device is None, "on_device": list(on_device or ())}
    return _settle(connection, "boot_id = :boot_id", parameters)


def settle_silent(db: Database, *, silent_seconds: float) -> list[str]:
    """As `settle_dead`, for up to `MAX_SETTLED` jobs whose lease ran out so many seconds ago.

    A process that sent no heartbeat since then counts as dead.
    """
    parameters = {"silent_seconds": silent_seconds, "is_unknown": True, "on_device": []}
    which = "lost_at < statement_timestamp() - make_interval(secs => :silent_seconds)"
    return db.run(lambda connection: _settle(connection, which, parameters))


def _settle(connection: Connection, which: str, parameters: Mapping[str, Any]) -> list[str]:
    rows = connection.execute(text(_SETTLE.format(which=which)), {**parameters, "limit": MAX_SETTLED}).all()
    return [row.id for row in rows]


# Locks in id order, as a heartbeat does.
_SETTLE = """
    WITH due AS MATERIALIZED (
        SELECT job_id, boot_id FROM possible_crashes WHERE {which}
         ORDER BY lost_at LIMIT :limit FOR UPDATE SKIP LOCKED
    ), settled AS (
        DELETE FROM possible_crashes AS possible USING due
         WHERE possible.job_id = due.job_id AND possible.boot_id = due.boot_id
        RETURNING possible.job_id,
                  EXISTS (SELECT FROM workers
                           WHERE workers.boot_id = possible.boot_id AND seen_at > lost_at) AS was_heard
    ), crashes AS (
        SELECT job_id, count(*) AS number FROM settled
         WHERE NOT was_heard AND (:is_unknown OR job_id = ANY(:on_device)) GROUP BY job_id
    ), charged AS (
        SELECT jobs.id, number FROM jobs JOIN crashes ON jobs.id = crashes.job_id
         WHERE state IN ('queued', 'running') ORDER BY jobs.id FOR UPDATE OF jobs
    )
    UPDATE jobs SET num_crashes = num_crashes + charged.number FROM charged WHERE jobs.id = charged.id
    RETURNING jobs.id
    """
