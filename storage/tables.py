"""Every table, as SQLAlchemy Core sees it. The migrations create them; a test compares the two.

It declares columns only: `storage.transitions` and `storage.jobs` define what may change, and when.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from catalogue.parameters import MAY_BE_NONE, PARAMETERS, KnownParameter
from catalogue.states import State

metadata = MetaData()


def _instant(name: str, *, nullable: bool = True) -> "Column[object]":
    return Column(name, DateTime(timezone=True), nullable=nullable)


_TYPES = {
    "int": Integer,
    "float": Double,
    "bool": Boolean,
    "object": JSONB,
    "files": JSONB,
    "adapters": JSONB,
}
_EMPTY = {"object": "{}", "files": "[]", "adapters": "[]"}
_MAX_INTEGER = 2**31 - 1


def _parameter(name: str, parameter: KnownParameter) -> "Column[object]":
    """The column of a parameter; a value that is absent is null only where the parameter may be None."""
    is_big = parameter.type == "int" and parameter.max is not None and parameter.max > _MAX_INTEGER
    kind = BigInteger if is_big else _TYPES.get(parameter.type, Text)
    return Column(name, kind, nullable=name in MAY_BE_NONE, server_default=_EMPTY.get(parameter.type))


def _accounted(*, is_key: bool) -> "tuple[Column[Any], ...]":
    """The columns of used amounts: what they are summed by, where an empty text is none, and the sums."""
    return (
        Column("day", Date, primary_key=is_key, nullable=False),  # in UTC, of the end of the job
        *(Column(name, Text, primary_key=is_key, nullable=False) for name in ACCOUNTED_BY),
        *_amounts(),
    )


def _amounts() -> "tuple[Column[Any], ...]":
    return (
        Column("num_jobs", BigInteger, nullable=False),
        Column("num_images", BigInteger, nullable=False),
        Column("device_seconds", Numeric, nullable=False),
        Column("cost_amount", Numeric, nullable=False),
    )


ACCOUNTED_BY = ("key_id", "batch_id", "tag", "tier", "cost_currency")
"""What used amounts are summed by, besides the account and the day."""

accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("webhook_secret", Text, nullable=False),
    _instant("created_at", nullable=False),
    # During the grace period it signs in addition to the new one.
    Column("previous_webhook_secret", Text),
    _instant("previous_webhook_secret_until"),
    # Whether its images embed their parameters.
    Column("embed_parameters", Boolean, nullable=False, server_default="false"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("prefix", Text, nullable=False, unique=True),
    Column("digest", Text, nullable=False),
    _instant("created_at", nullable=False),
    _instant("last_used_at"),
    _instant("revoked_at"),
)

# The digest of the cookie's value, which is not stored.
sessions = Table(
    "sessions",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("key_id", Text, ForeignKey("api_keys.id"), nullable=False),
    _instant("created_at", nullable=False),
    _instant("expires_at", nullable=False),
    _instant("ended_at"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("filename", Text, nullable=False),
    Column("num_jobs", Integer, nullable=False),
    Column("idempotency_key", Text),
    Column("request_hash", Text),
    _instant("created_at", nullable=False),
    _instant("cancel_requested_at"),
    Column("webhook_url", Text),
    # How its file was read, and the outcomes of its rows.
    Column("reading", JSONB, nullable=False, server_default="{}"),
    # Rows with an earlier job that succeeded or is open: [line, job id] of each.
    Column("earlier_jobs", JSONB, nullable=False, server_default="[]"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("lane", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("model", Text, nullable=False),
    # The columns of a request's parameters have their names and types.
    *(_parameter(name, parameter) for name, parameter in PARAMETERS.items()),
    Column("webhook_url", Text),
    # Where the job comes from.
    Column("batch_id", Text, ForeignKey("batches.id")),
    Column("batch_line", Integer),
    Column("retry_of", Text),  # of a job that may have been erased
    # What its cost is accounted under. The key is that of the request; it may be revoked later.
    Column("key_id", Text),
    Column("tag", Text),
    Column("idempotency_key", Text),
    Column("request_hash", Text),
    # Set by a claim; they fence every later write. `attempt` never decreases.
    Column("attempt", Integer, nullable=False),
    Column("lease_token", UUID(as_uuid=False)),
    Column("lease_boot_id", Text),
    Column("lease_expires_at", DateTime(timezone=True)),
    # `num_failures` counts charged errors, `num_crashes` processes that died while it was isolated.
    Column("num_failures", Integer, nullable=False),
    Column("num_crashes", Integer, nullable=False),
    # Quarantined: its process died while running it. Isolated: one of its images runs alone now.
    Column("quarantined", Boolean, nullable=False),
    Column("isolated", Boolean, nullable=False),
    # Set while queued: how often it was dispatched, the last dispatch number, and when it is due again.
    Column("dispatch_seq", Integer, nullable=False),
    Column("dispatch_number", BigInteger),
    _instant("dispatched_at"),
    _instant("next_dispatch_at"),
    # Life cycle.
    _instant("created_at", nullable=False),
    _instant("deadline_at"),
    _instant("started_at"),
    _instant("finished_at"),
    _instant("cancel_requested_at"),
    Column("progress", Double, nullable=False),
    _instant("progress_at"),  # when it was written between two heartbeats, which also write progress
    Column("worker", Text),
    Column("error_code", Text),
    Column("error_retryable", Boolean),
    Column("error_detail", Text),
    Column("warnings", JSONB, nullable=False),
    Column("timings", JSONB, nullable=False),
    # Of its device seconds, at the price of that time; absent if the device had no price.
    Column("cost_amount", Numeric(20, 9)),
    Column("cost_currency", Text),
    # The span of the request that submitted it (W3C Trace Context); only with traces.
    Column("traceparent", Text),
)

images = Table(
    "images",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("index", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("object_key", Text, nullable=False, unique=True),
    Column("sha256", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    _instant("created_at", nullable=False),
    _instant("deleted_at"),
    _instant("missing_at"),  # its object was not in the backup from which it was restored
)

files = Table(
    "files",
    metadata,
    Column("account_id", Text, ForeignKey("accounts.id"), primary_key=True),
    Column("id", Text, primary_key=True),  # the digest of its bytes
    # `uploading` from the presigned link on, `ready` once its bytes were checked.
    Column("state", Text, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    # After the rotation that EXIF asks for; absent while uploading.
    Column("width", Integer),
    Column("height", Integer),
    Column("object_key", Text, unique=True),  # absent once the object was deleted
    _instant("created_at", nullable=False),
    _instant("expires_at"),  # absent once a job has named it
    _instant("deleted_at"),
)

job_files = Table(
    "job_files",
    metadata,
    Column("account_id", Text, nullable=False),
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("file_id", Text, primary_key=True),
    ForeignKeyConstraint(["account_id", "file_id"], ["files.account_id", "files.id"]),
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("transition", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", Text),
    Column("detail", Text),
    _instant("created_at", nullable=False),
)

# Processes that may have crashed while they ran a job alone (docs/adr/0037).
possible_crashes = Table(
    "possible_crashes",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("boot_id", Text, primary_key=True),
    _instant("lost_at", nullable=False),
)

# What is left of erased jobs.
erased_jobs = Table(
    "erased_jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("key_digest", Text),  # of its idempotency key
    _instant("erased_at", nullable=False),
)

# Objects that no row needs any more and that are still to be deleted.
needless_objects = Table(
    "needless_objects",
    metadata,
    Column("object_key", Text, primary_key=True),
    _instant("since", nullable=False),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("job_id", Text, ForeignKey("jobs.id")),
    Column("batch_id", Text, ForeignKey("batches.id")),
    Column("event", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("num_attempts", Integer, nullable=False),
    # The end of the lease while it is being sent, else the time of the next attempt.
    _instant("next_attempt_at"),
    _instant("created_at", nullable=False),
    _instant("finished_at"),
    # Failures since it was created or replayed, which is its position in the schedule.
    Column("num_failures", Integer, nullable=False),
    Column("lease_token", UUID(as_uuid=False)),
    _instant("dispatched_at"),
    # Host and port of the URL, computed by Postgres.
    Column("receiver", Text, FetchedValue(), nullable=False),
    # When it began to wait for its failing receiver; it is not due until the receiver answers.
    _instant("held_at"),
    # The code of its last attempt, or `receiver_paused`.
    Column("error_code", Text),
)

# Only receivers that failed recently have a row.
webhook_receivers = Table(
    "webhook_receivers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("receiver", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("num_failures", Integer, nullable=False),  # in a row
    Column("num_probes", Integer, nullable=False),  # failed ones, which is the position in the backoff
    _instant("failing_since"),
    _instant("next_probe_at"),
    _instant("paused_at"),
    _instant("last_failed_at", nullable=False),
    Column("last_error_code", Text, nullable=False),
    Column("last_error_detail", Text),
)

webhook_attempts = Table(
    "webhook_attempts",
    metadata,
    Column("delivery_id", Text, ForeignKey("webhook_deliveries.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    _instant("started_at", nullable=False),
    Column("milliseconds", Integer),
    Column("response_status", Integer),
    Column("error_code", Text),
    Column("error_detail", Text),
    Column("answer", Text),
)


def _work() -> "list[Column[object]]":
    """The work of queued jobs, which `storage.open_work` explains."""
    names = ("encodings", "pixels", "full_steps", "cached_steps", "guided_full_steps", "guided_cached_steps")
    return [Column(name, BigInteger, nullable=False, server_default="0") for name in names]


# Kept by triggers and folded by `storage.counts`, which explains them.
job_count_changes = Table(
    "job_count_changes",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("tier", Text, nullable=False),
    Column("lane", Text, nullable=False),
    Column("account_id", Text),
    Column("batch_id", Text),
    *(Column(state.value, Integer, nullable=False) for state in State),
    _instant("finished_at"),
    *_work(),
)

queue_counts = Table(
    "queue_counts",
    metadata,
    Column("tier", Text, primary_key=True),
    Column("lane", Text, primary_key=True),
    Column("queued", BigInteger, nullable=False),
    *_work(),
)

batch_counts = Table(
    "batch_counts",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("tier", Text, primary_key=True),
    Column("account_id", Text, nullable=False),
    *(Column(state.value, BigInteger, nullable=False) for state in State),
    _instant("finished_at"),  # of the job that ended last
)

# What succeeded jobs used, kept and folded in the same way; `storage.usage` reads it.
usage_changes = Table(
    "usage_changes",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("account_id", Text, nullable=False),
    *_accounted(is_key=False),
)

usage_sums = Table(
    "usage_sums",
    metadata,
    Column("account_id", Text, primary_key=True),
    *_accounted(is_key=True),
)

batch_usage = Table(
    "batch_usage",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("cost_currency", Text, primary_key=True),
    Column("account_id", Text, nullable=False),
    *_amounts(),
)

delivery_count_changes = Table(
    "delivery_count_changes",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("pending", Integer, nullable=False),
)

delivery_counts = Table(
    "delivery_counts",
    metadata,
    Column("id", Integer, primary_key=True),  # of its only row
    Column("pending", BigInteger, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("boot_id", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("tiers", JSONB, nullable=False),
    Column("interactive_slots", Integer, nullable=False),
    Column("bulk_slots", Integer, nullable=False),
    Column("determinism", Text, nullable=False),
    _instant("started_at", nullable=False),
    _instant("seen_at", nullable=False),
    _instant("stopped_at"),
    # Tier -> the fingerprint of the profile that applies to this worker.
    Column("fingerprints", JSONB, nullable=False),
    _instant("drain_requested_at"),  # by an operator; it then takes no jobs
)

paused_tiers = Table(
    "paused_tiers",
    metadata,
    Column("tier", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    _instant("paused_at", nullable=False),
)

profiles = Table(
    "profiles",
    metadata,
    Column("tier", Text, primary_key=True),
    Column("fingerprint", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("device_kind", Text, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("steps", JSONB, nullable=False),
    Column("encode_seconds", Double, nullable=False),
    Column("decode_seconds", Double, nullable=False),
    Column("num_guided_rows", Integer, nullable=False),
    Column("knee_rows", Integer, nullable=False),
    Column("max_rows", Integer, nullable=False),
    Column("is_worth_batching", Boolean, nullable=False),
    Column("cached_share", Double, nullable=False),
    Column("is_learned", Boolean, nullable=False),
    _instant("published_at", nullable=False),
)
