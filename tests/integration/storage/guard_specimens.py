"""Jobs of every kind that the schema admits, and what a call has changed of them.

Owns a database of its own, in which the rows are put back between two calls. It does not know which call
changes which rows.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from sqlalchemy import Connection, text

from storage.database import Database
from storage.jobs import Lease
from storage.submissions import create
from storage.tables import accounts, batches, paused_tiers, workers
from tests.fixtures.new_jobs import new_job

COUNTERS = ("count_inserted", "count_updated", "count_deleted", "count_used")
"""Triggers that keep sums of jobs; guards do not depend on them, and rows are put back without them."""
KEPT = ("batches", "jobs", "possible_crashes", "workers")
EMPTY = ("job_events", "images", "webhook_deliveries")
"""Tables that only calls write."""
GOOD = ("account-a", "account-m")
"""Accounts with jobs of every kind, before and behind which others sort that have only one kind."""
BAD: dict[str, dict[str, Any]] = {
    "tier": {"tier": "hd"},
    "paused": {"tier": "paused"},
    "lane": {"lane": "interactive", "batch_id": None, "batch_line": None},
    "state": {"state": "canceled", "next_dispatch_at": None, "finished_at": "past"},
    "number": {"dispatch_number": 1},
    "quarantined": {"quarantined": True},
    "early": {"next_dispatch_at": "future"},
    "late": {"deadline_at": "past"},
}
"""Of a queued bulk job that is due, what keeps it from being claimed or dispatched."""
URL = "https://example.com/hook"
DEAD, ALIVE = "boot-dead", "boot-alive"
INSTANTS = ("lease_expires_at", "next_dispatch_at", "finished_at", "deadline_at", "started_at")


class Specimens:
    """The rows, in a database whose schema is migrated and in which nothing else is."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = database = Database(url, 2)
        with database.transaction() as connection:
            for name in (*GOOD, *(f"{side}-{kind}" for side in ("account-c", "account-p") for kind in BAD)):
                connection.execute(accounts.insert().values(id=name, name=name, webhook_secret=name))
            connection.execute(
                batches.insert().values(id="batch", account_id=GOOD[0], filename="a.csv", num_jobs=9)
            )
            connection.execute(
                batches.insert().values(id="other", account_id=GOOD[0], filename="b.csv", num_jobs=9)
            )
            connection.execute(paused_tiers.insert().values(tier="paused", reason=""))
            for boot_id in (DEAD, ALIVE):
                connection.execute(
                    workers.insert().values(
                        id=boot_id, boot_id=boot_id, host="host", pid=1, device="cpu:0", tiers=["sd"],
                        interactive_slots=1, bulk_slots=1, determinism="exact",
                        started_at=text("now() - interval '2 hours'"),
                        seen_at=text("now() - interval '2 hours'" if boot_id == DEAD else "now()"),
                    )
                )  # fmt: skip
        base = create(database, new_job(GOOD[0], lane="bulk"), redispatch_seconds=15)[0]
        with database.transaction() as connection:
            for trigger in COUNTERS:
                connection.execute(text(f"DROP TRIGGER IF EXISTS {trigger} ON jobs"))
                connection.execute(text(f"DROP TRIGGER IF EXISTS {trigger} ON webhook_deliveries"))
            for number, row in enumerate(_rows()):
                _insert(connection, base.id, number, row)
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": base.id})
            _note_possible_crashes(connection)
            connection.execute(text("CREATE SCHEMA kept"))
            for table in KEPT:
                connection.execute(text(f"CREATE TABLE kept.{table} AS TABLE {table}"))
            rows = connection.execute(
                text("SELECT id, state, attempt, lease_token, quarantined FROM jobs ORDER BY id")
            )
            self.jobs = {row.id: row for row in rows}

    def ids(self, *states: str) -> list[str]:
        """The ids of all jobs, or of those in these states."""
        return [row.id for row in self.jobs.values() if not states or row.state in states]

    def leases(self) -> list[Lease]:
        """Leases of running jobs, some of which are right; others name another attempt, token or job."""
        running = [row for row in self.jobs.values() if row.state == "running"]
        presented = []
        for number, row in enumerate(running):
            lease = Lease(row.id, row.attempt, str(row.lease_token))
            other = running[number - 1]
            shown = (
                lease,
                lease,
                Lease(row.id, row.attempt + 1, lease.token),
                Lease(row.id, row.attempt, str(other.lease_token)),
                Lease(other.id, row.attempt, lease.token),
            )
            presented.append(shown[number % len(shown)])
        return presented

    def put_back(self) -> None:
        """Make all rows what they were at first."""
        with self.database.transaction() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            for table in (*EMPTY, *KEPT):
                connection.execute(text(f"DELETE FROM {table}"))
            for table in KEPT:
                connection.execute(text(f"INSERT INTO {table} SELECT * FROM kept.{table}"))
            connection.execute(text("SELECT setval('dispatch_numbers', 1000)"))

    def now(self) -> list[Any]:
        """What is written of all rows, without what differs from one execution to the next."""
        with self.database.transaction() as connection:
            return [sorted(map(str, connection.execute(text(query)).all())) for query in _NOW]


def _rows() -> Iterator[dict[str, Any]]:
    """What differs from a bulk job that is queued and due."""
    for side in ("account-c", "account-p"):
        for changes in ({"account_id": f"{side}-{kind}", **bad} for kind, bad in BAD.items()):
            for _ in range(2):
                yield changes
    for account in GOOD:
        batched: dict[str, Any] = {"batch_id": "batch", "batch_line": 1} if account == GOOD[0] else {}
        yield {"account_id": account, **batched}
        others: tuple[dict[str, Any], ...] = ({}, {"cancel_requested_at": "past"}, {"deadline_at": "future"})
        for change in (*others, *BAD.values()):
            yield {"account_id": account, **change}
            yield {"account_id": account, "lane": "interactive", **change}
            yield {"account_id": account, "dispatch_number": 7, **change}
            yield {"account_id": account, "lane": "interactive", "dispatch_number": 8, **change}
            yield {"account_id": account, "lane": "interactive", "dispatch_number": 90, **change}
        for boot_id in (DEAD, ALIVE):
            for flags, expires_at, asked, url in product(
                ((False, False), (True, False), (True, True)), ("past", "future"), (None, "past"), (None, URL)
            ):
                yield {
                    "account_id": account,
                    **_RUNNING,
                    "lease_boot_id": boot_id,
                    "quarantined": flags[0],
                    "isolated": flags[1],
                    "lease_expires_at": expires_at,
                    "cancel_requested_at": asked,
                    "webhook_url": url,
                }
        for batch in ("batch", "other") if account == GOOD[0] else ():
            running: tuple[dict[str, Any], ...] = (_RUNNING, {**_RUNNING, "cancel_requested_at": "past"})
            for number, change in enumerate(({}, *running)):
                yield {"account_id": account, "batch_id": batch, "batch_line": 10 + number, **change}
        for state in ("succeeded", "failed", "canceled", "expired"):
            failed: dict[str, Any] = {"error_code": "worker_lost"} if state == "failed" else {}
            yield {"account_id": account, **BAD["state"], "state": state, **failed}


_RUNNING: dict[str, Any] = {
    "state": "running",
    "attempt": 2,
    "progress": 0.5,
    "next_dispatch_at": None,
    "lease_boot_id": ALIVE,
    "lease_expires_at": "future",
}


def _insert(connection: Connection, base: str, number: int, changes: dict[str, Any]) -> None:
    webhook = {"webhook_url": "https://hooks.example.com/"} if number % 3 else {}
    row = {
        "next_dispatch_at": "past",
        **webhook,
        "dispatch_number": None,
        "id": f"job_{number:03}",
        **changes,
    }
    instants = {name: row.pop(name) for name in list(row) if name in (*INSTANTS, "cancel_requested_at")}
    named = ", ".join(
        f"'{name}', {_INSTANT[str(which)]}" for name, which in {**instants, "created_at": "created"}.items()
    )
    token = "CAST(md5(CAST(:id AS text)) AS uuid)" if row.get("state") == "running" else "NULL"
    query = f"""INSERT INTO jobs
                SELECT (jsonb_populate_record(jobs, CAST(:row AS jsonb)
                        || jsonb_build_object({named}, 'lease_token', {token}))).*
                  FROM jobs WHERE id = :base"""
    values = {"row": json.dumps(row), "id": row["id"], "base": base, "number": number}
    connection.execute(text(query), {name: value for name, value in values.items() if f":{name}" in query})


_INSTANT = {
    "None": "NULL",
    "past": "now() - interval '1 hour'",
    "future": "now() + interval '1 hour'",
    "created": "now() - interval '1 day' + make_interval(secs => :number)",
}


def _note_possible_crashes(connection: Connection) -> None:
    """Half of the jobs, under both processes, before and after the live one was last seen."""
    connection.execute(
        text(
            """INSERT INTO possible_crashes (job_id, boot_id, lost_at)
               SELECT id, boot_id, now() + make_interval(hours =>
                          CASE right(id, 1) WHEN '0' THEN 1 WHEN '8' THEN -3
                          WHEN '4' THEN CASE boot_id WHEN :dead THEN -1 ELSE 1 END
                          WHEN '6' THEN CASE boot_id WHEN :dead THEN 1 ELSE -1 END ELSE -1 END)
                 FROM jobs CROSS JOIN unnest(CAST(:boots AS text[])) AS boots (boot_id)
                WHERE right(id, 1) IN ('0', '2', '4', '6', '8')"""
        ),
        {"boots": [DEAD, ALIVE], "dead": DEAD},
    )


def _bucket(column: str) -> str:
    return f"""CASE WHEN {column} < now() - interval '30 minutes' THEN 'past'
                    WHEN {column} < now() + interval '30 minutes' THEN 'near'
                    WHEN {column} IS NOT NULL THEN 'far' END"""


_NOW: Sequence[str] = (
    f"""SELECT id, state, attempt, worker, lease_boot_id, num_failures, num_crashes, quarantined, isolated,
               dispatch_seq, dispatch_number, progress, error_code, lease_token = CAST(md5(id) AS uuid),
               {", ".join(map(_bucket, (*INSTANTS, "cancel_requested_at")))} FROM jobs""",
    "SELECT job_id, transition, state, attempt, detail FROM job_events",
    "SELECT job_id, index, attempt FROM images",
    "SELECT job_id, batch_id, event FROM webhook_deliveries",
    f"SELECT job_id, boot_id, {_bucket('lost_at')} FROM possible_crashes",
)
