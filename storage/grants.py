"""What each role may do with each table, column by column: the only list of rights.

Every `alembic upgrade head` applies it, so a migration that adds a column grants nothing itself. The
migrations define which rows the API sees, by row-level security.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from catalogue.parameters import PARAMETERS, PRIVATE
from storage.roles import GROUPS, DatabaseRole, group_of
from storage.tables import metadata


def _columns(names: str) -> tuple[str, ...]:
    return tuple(names.split())


@dataclass(frozen=True)
class Grant:
    """The columns of one table that a role may select, insert and update; whether it may delete rows."""

    select: tuple[str, ...] = ()
    insert: tuple[str, ...] = ()
    update: tuple[str, ...] = ()
    delete: bool = False

    @property
    def rights(self) -> dict[str, tuple[str, ...]]:
        """The columns by action, without actions that have no columns."""
        found = {"select": self.select, "insert": self.insert, "update": self.update}
        return {right: columns for right, columns in found.items() if columns}


_ASKED_FOR = (
    *("model", "tier", "lane"),
    *(name for name in PARAMETERS if name not in PRIVATE),
    *("webhook_url", "batch_id", "batch_line", "retry_of", "key_id", "tag"),
)
_PROMPTS = PRIVATE
_LIFE = _columns(
    """attempt num_failures num_crashes quarantined isolated dispatch_seq created_at deadline_at started_at
       finished_at cancel_requested_at progress worker error_code error_retryable error_detail warnings
       timings cost_amount cost_currency"""
)
_LEASE = _columns("lease_token lease_boot_id lease_expires_at")
_ERROR = _columns("error_code error_retryable error_detail")
_DISPATCH = _columns("dispatch_seq dispatch_number dispatched_at next_dispatch_at")
_IMAGE = _columns("job_id index seed object_key sha256 num_bytes width height")
_FILE = _columns("account_id id state media_type num_bytes width height object_key created_at expires_at")
_JOB_FILE = _columns("account_id job_id file_id")
_PROFILE = tuple(column.name for column in metadata.tables["profiles"].columns)
VIEWS = {
    "open_jobs": (
        *("id", "state", "lane", "tier", "dispatch_number", "started_at"),
        *(name for name, parameter in PARAMETERS.items() if parameter.in_estimates),
        *("progress", "progress_at", "lease_boot_id"),
    ),
    "queue_depths": _columns("tier lane queued"),
    "open_work": _columns(
        "tier lane state encodings pixels full_steps cached_steps guided_full_steps guided_cached_steps"
    ),
    "webhook_backlog": _columns("num_pending seconds_late"),
    "receivers_by_state": _columns("state num_receivers"),
}
"""Views over the rows of all accounts without prompts, accounts and keys, with their columns."""
_RECEIVER = tuple(column.name for column in metadata.tables["webhook_receivers"].columns)
_BATCH_COUNTS = _columns(
    "batch_id tier account_id queued running succeeded failed canceled expired finished_at"
)
_USAGE = tuple(column.name for column in metadata.tables["usage_sums"].columns)
_BATCH_USAGE = tuple(column.name for column in metadata.tables["batch_usage"].columns)
_AMOUNTS = _columns("num_jobs num_images device_seconds cost_amount")
_POSSIBLE_CRASH = _columns("job_id boot_id lost_at")
_WORKER = tuple(column.name for column in metadata.tables["workers"].columns)
_NEW_WORKER = tuple(name for name in _WORKER if name != "drain_requested_at")
_PAUSED = tuple(column.name for column in metadata.tables["paused_tiers"].columns)

# A role that ends jobs writes events and webhook deliveries, of batches too, and locks the batch. A lock
# needs the right to update some column of the row: this column has no other effect.
_EVENT = _columns("job_id transition state attempt worker detail")
_DELIVERY = _columns("id account_id job_id batch_id event url next_attempt_at")
_ENDING = {
    "job_events": Grant(insert=_EVENT),
    "webhook_deliveries": Grant(select=_columns("batch_id event"), insert=_DELIVERY),
    "batches": Grant(select=_columns("id account_id webhook_url"), update=("cancel_requested_at",)),
}

GRANTS: Mapping[DatabaseRole, Mapping[str, Grant]] = {
    "api": {
        "accounts": Grant(
            select=_columns("id webhook_secret"),
            update=_columns("webhook_secret previous_webhook_secret previous_webhook_secret_until"),
        ),
        "jobs": Grant(
            select=(
                *("id", "account_id", "state", "idempotency_key", "request_hash"),
                *(*_ASKED_FOR, *_PROMPTS, *_LIFE, *_DISPATCH),
            ),
            insert=(
                *("id", "account_id", "idempotency_key", "request_hash", "deadline_at", "warnings"),
                *(*_ASKED_FOR, *_PROMPTS, *_DISPATCH),
                "traceparent",
            ),
            update=_columns(
                "state finished_at cancel_requested_at dispatch_seq dispatch_number next_dispatch_at"
            ),
        ),
        "batches": Grant(
            select=_columns(
                "id account_id filename num_jobs idempotency_key request_hash created_at cancel_requested_at "
                "webhook_url reading earlier_jobs"
            ),
            insert=_columns(
                "id account_id filename num_jobs idempotency_key request_hash created_at webhook_url reading "
                "earlier_jobs"
            ),
            update=("cancel_requested_at",),
        ),
        "images": Grant(select=(*_IMAGE, "deleted_at", "missing_at")),
        "files": Grant(
            select=(*_FILE, "deleted_at"),
            insert=_columns("account_id id state media_type num_bytes width height object_key expires_at"),
            update=_columns(
                "state media_type num_bytes width height object_key created_at expires_at deleted_at"
            ),
        ),
        "job_files": Grant(select=_JOB_FILE, insert=_JOB_FILE),
        "job_events": Grant(select=_columns("id job_id transition detail"), insert=_EVENT),
        "webhook_deliveries": Grant(
            select=_columns(
                "id account_id job_id batch_id event url state num_attempts next_attempt_at created_at "
                "finished_at receiver held_at error_code"
            ),
            insert=_DELIVERY,
            update=_columns("state num_failures next_attempt_at finished_at error_code"),
        ),
        "webhook_attempts": Grant(
            select=_columns(
                "delivery_id number started_at milliseconds response_status error_code error_detail answer"
            )
        ),
        "webhook_receivers": Grant(
            select=_RECEIVER,
            update=_columns("state num_probes failing_since next_probe_at paused_at"),
        ),
        "sessions": Grant(
            select=_columns("digest ended_at"),
            insert=_columns("digest key_id expires_at"),
            update=("ended_at",),
        ),
        "workers": Grant(select=_WORKER),
        "paused_tiers": Grant(select=_PAUSED),
        "profiles": Grant(select=_PROFILE),
        "batch_counts": Grant(select=_BATCH_COUNTS),
        "job_count_changes": Grant(select=_BATCH_COUNTS),
        "usage_changes": Grant(select=_USAGE),
        "usage_sums": Grant(select=_USAGE),
        "batch_usage": Grant(select=_BATCH_USAGE),
        "erased_jobs": Grant(select=_columns("job_id account_id key_digest erased_at")),
        "open_jobs": Grant(select=VIEWS["open_jobs"]),
        "queue_depths": Grant(select=VIEWS["queue_depths"]),
        "open_work": Grant(select=VIEWS["open_work"]),
        "webhook_backlog": Grant(select=VIEWS["webhook_backlog"]),
        "receivers_by_state": Grant(select=VIEWS["receivers_by_state"]),
    },
    "worker": {
        **_ENDING,
        "job_events": Grant(select=_columns("id job_id transition created_at"), insert=_EVENT),
        "jobs": Grant(
            select=(
                *("id", "account_id", "state", "request_hash", "dispatch_number", "next_dispatch_at"),
                *(*_ASKED_FOR, *_PROMPTS, *_LIFE, *_LEASE),
                "traceparent",
            ),
            update=(
                *_columns("state attempt worker isolated progress progress_at started_at finished_at"),
                *_columns("warnings timings cost_amount cost_currency"),
                *_columns("num_failures num_crashes quarantined dispatch_number next_dispatch_at"),
                *(*_LEASE, *_ERROR),
            ),
        ),
        # It settles those of a process that died beside it.
        "possible_crashes": Grant(select=_POSSIBLE_CRASH, update=("lost_at",), delete=True),
        "images": Grant(insert=(*_IMAGE, "attempt", "deleted_at")),
        "files": Grant(select=(*_FILE, "deleted_at")),
        "job_files": Grant(select=_JOB_FILE),
        "accounts": Grant(select=_columns("id embed_parameters")),
        # Only the owner asks it to drain, and pauses tiers.
        "workers": Grant(select=_WORKER, insert=_NEW_WORKER, update=_columns("seen_at stopped_at")),
        "paused_tiers": Grant(select=("tier",)),
        "profiles": Grant(
            select=_PROFILE,
            insert=tuple(name for name in _PROFILE if name != "published_at"),
            update=tuple(name for name in _PROFILE if name not in ("tier", "fingerprint")),
        ),
    },
    "sender": {
        "webhook_deliveries": Grant(
            select=_columns(
                """id account_id job_id batch_id event url state num_attempts next_attempt_at num_failures
                   lease_token dispatched_at receiver held_at"""
            ),
            update=_columns(
                """state num_attempts next_attempt_at finished_at num_failures lease_token dispatched_at
                   held_at
                   error_code"""
            ),
        ),
        "webhook_receivers": Grant(
            select=_RECEIVER,
            insert=_columns(
                """account_id receiver state num_failures failing_since last_failed_at last_error_code
                   last_error_detail"""
            ),
            update=_columns(
                """state num_failures num_probes failing_since next_probe_at paused_at last_failed_at
                   last_error_code last_error_detail"""
            ),
        ),
        "webhook_attempts": Grant(
            select=_columns("delivery_id number milliseconds error_code"),
            insert=_columns("delivery_id number"),
            update=_columns("milliseconds response_status error_code error_detail answer"),
        ),
        "accounts": Grant(
            select=_columns("id webhook_secret previous_webhook_secret previous_webhook_secret_until")
        ),
        "jobs": Grant(
            select=("id", "account_id", "state", "request_hash", *_ASKED_FOR, *_LIFE, "traceparent")
        ),
        "images": Grant(select=(*_IMAGE, "deleted_at", "missing_at")),
        "batches": Grant(select=_columns("id account_id filename num_jobs created_at")),
        "batch_counts": Grant(select=_BATCH_COUNTS),
        "job_count_changes": Grant(select=_BATCH_COUNTS),
    },
    "sweeper": {
        **_ENDING,
        "job_events": Grant(select=_columns("id job_id transition state"), insert=_EVENT),
        "jobs": Grant(
            select=(
                *_columns("id account_id state tier lane webhook_url batch_id attempt worker"),
                *_columns("num_crashes quarantined isolated created_at deadline_at cancel_requested_at"),
                *_columns("num_inference_steps width height num_images"),  # shown by Flower
                *("error_code", *_LEASE, *_DISPATCH),
            ),
            update=(
                *_columns("state num_crashes quarantined isolated progress finished_at"),
                *(*_LEASE, *_ERROR, *_DISPATCH),
            ),
        ),
        "webhook_deliveries": Grant(
            select=_columns(
                "id account_id batch_id event state next_attempt_at lease_token dispatched_at"
                " receiver held_at"
            ),
            insert=_DELIVERY,
            update=_columns("state next_attempt_at finished_at dispatched_at held_at error_code"),
        ),
        "webhook_receivers": Grant(select=_RECEIVER, update=_columns("state next_probe_at"), delete=True),
        # It locks rows before deleting them, which needs the right to update some column.
        "sessions": Grant(select=_columns("digest expires_at"), update=("ended_at",), delete=True),
        "possible_crashes": Grant(
            select=_POSSIBLE_CRASH, insert=("job_id", "boot_id"), update=("lost_at",), delete=True
        ),
        "workers": Grant(select=_WORKER),
        "paused_tiers": Grant(select=("tier",)),
        "images": Grant(select=("object_key",)),
        "erased_jobs": Grant(select=("job_id", "account_id")),
        "needless_objects": Grant(select=("object_key", "since"), delete=True),
        "accounts": Grant(select=("id",)),
        "files": Grant(
            select=_columns("account_id id object_key expires_at deleted_at"),
            update=_columns("object_key deleted_at"),
            delete=True,
        ),
        "job_files": Grant(select=_columns("account_id file_id")),
        # It folds the changes of the counts into their sums.
        "job_count_changes": Grant(select=("id", "lane", *_BATCH_COUNTS), delete=True),
        "queue_counts": Grant(
            select=_columns("tier lane queued"), insert=_columns("tier lane queued"), update=("queued",)
        ),
        "batch_counts": Grant(
            select=_BATCH_COUNTS,
            insert=_BATCH_COUNTS,
            update=_columns("queued running succeeded failed canceled expired finished_at"),
        ),
        "usage_changes": Grant(select=("id", *_USAGE), delete=True),
        "usage_sums": Grant(select=_USAGE, insert=_USAGE, update=_AMOUNTS),
        "batch_usage": Grant(select=_BATCH_USAGE, insert=_BATCH_USAGE, update=_AMOUNTS),
        "delivery_count_changes": Grant(select=("id", "pending"), delete=True),
        "delivery_counts": Grant(select=_columns("id pending"), update=("pending",)),
    },
}
SEQUENCES: Mapping[DatabaseRole, tuple[str, ...]] = {
    "api": ("dispatch_numbers",),
    "sweeper": ("dispatch_numbers",),
}
FUNCTIONS: Mapping[DatabaseRole, tuple[str, ...]] = {
    "api": (
        *("job_states", "use_key", "principal_of_session", "next_bulk_jobs"),
        *("delete_own_images", "erase_own_job"),
    ),
    "sweeper": ("erase_old_jobs",),
}
"""Functions that run with their owner's rights."""
_WITH_RIGHTS = text(
    """SELECT CAST(CAST(oid AS regprocedure) AS text) FROM pg_proc
        WHERE pronamespace = CAST(current_schema() AS regnamespace) AND prosecdef"""
)


def grant_all(connection: Connection) -> None:
    """Grant the groups exactly these rights; the schema must be at its newest version."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    groups = ", ".join(GROUPS)
    tables = ", ".join(map(quote, (*metadata.tables, *VIEWS)))
    connection.exec_driver_sql(f"REVOKE ALL ON {tables} FROM {groups}")
    connection.exec_driver_sql(f"REVOKE ALL ON SEQUENCE dispatch_numbers FROM {groups}")
    for role, tables_of_role in GRANTS.items():
        for table, grant in tables_of_role.items():
            place = f"ON {quote(table)} TO {group_of(role)}"
            for right, columns in grant.rights.items():
                connection.exec_driver_sql(f"GRANT {right} ({', '.join(map(quote, columns))}) {place}")
            if grant.delete:
                connection.exec_driver_sql(f"GRANT DELETE {place}")
    for role, sequences in SEQUENCES.items():
        for sequence in sequences:
            connection.exec_driver_sql(f"GRANT USAGE ON SEQUENCE {sequence} TO {group_of(role)}")
    # Everybody may execute a new function, also one that a backup brought back without its rights.
    for function in connection.execute(_WITH_RIGHTS).scalars().all():
        connection.exec_driver_sql(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC, {groups}")
    for role, functions in FUNCTIONS.items():
        for function in functions:
            connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {function} TO {group_of(role)}")
    schema = quote(connection.execute(text("SELECT current_schema()")).scalar_one())
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {groups}")
