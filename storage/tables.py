"""Every table, as SQLAlchemy Core sees it. The migrations create them; a test compares the two.

Tables hold columns and nothing else: what may change and when is `storage.states` and `storage.jobs`.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = MetaData()


def _instant(name: str, *, nullable: bool = True) -> "Column[object]":
    return Column(name, DateTime(timezone=True), nullable=nullable)


accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("webhook_secret", Text, nullable=False),
    _instant("created_at", nullable=False),
    # Signs beside the new one until receivers have changed over.
    Column("previous_webhook_secret", Text),
    _instant("previous_webhook_secret_until"),
    # Whether its images carry what they were drawn from.
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

# The digest is that of the cookie's value, which is kept nowhere.
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
    # How its file was read, and what became of its rows.
    Column("reading", JSONB, nullable=False, server_default="{}"),
    # Rows that are done or under way already: line and job id of each.
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
    # What was asked for.
    Column("prompt", Text, nullable=False),
    Column("negative_prompt", Text, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("num_inference_steps", Integer, nullable=False),
    Column("guidance_scale", Double, nullable=False),
    Column("guidance_cutoff", Double, nullable=False),
    Column("step_cache", Integer, nullable=False),
    Column("scheduler", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("num_images", Integer, nullable=False),
    Column("strict", Boolean, nullable=False),
    Column("output_format", Text, nullable=False),
    Column("output_quality", Integer),  # absent: a format's own; a PNG has none
    # Ids of files of the account; `job_files` keeps these.
    Column("image", JSONB, nullable=False, server_default="[]"),
    Column("mask_image", Text),
    Column("control_image", Text),
    Column("strength", Double),  # absent: the pipeline's own
    # Adapters: name and scale of each.
    Column("loras", JSONB, nullable=False, server_default="[]"),
    # An object: the parameters of this model's own pipeline.
    Column("pipeline_parameters", JSONB, nullable=False, server_default="{}"),
    Column("webhook_url", Text),
    # Where it came from.
    Column("batch_id", Text, ForeignKey("batches.id")),
    Column("batch_line", Integer),
    Column("retry_of", Text, ForeignKey("jobs.id")),
    Column("idempotency_key", Text),
    Column("request_hash", Text),
    # Set by a claim; the fence of every later write. `attempt` never falls.
    Column("attempt", Integer, nullable=False),
    Column("lease_token", UUID(as_uuid=False)),
    Column("lease_boot_id", Text),
    Column("lease_expires_at", DateTime(timezone=True)),
    # `num_failures` counts transient errors, `num_crashes` processes that died while it ran alone.
    Column("num_failures", Integer, nullable=False),
    Column("num_crashes", Integer, nullable=False),
    # A suspect was held by a process that died; `solo` marks that an image of it runs alone now.
    Column("quarantined", Boolean, nullable=False),
    Column("isolated", Boolean, nullable=False),
    # Set while queued: how many bells were rung, the number of the last one, and when to look again.
    Column("dispatch_seq", Integer, nullable=False),
    Column("dispatch_number", BigInteger),
    _instant("dispatched_at"),
    _instant("next_dispatch_at"),
    # Life.
    _instant("created_at", nullable=False),
    _instant("deadline_at"),
    _instant("started_at"),
    _instant("finished_at"),
    _instant("cancel_requested_at"),
    Column("progress", Double, nullable=False),
    _instant("progress_at"),  # when it was written between two heartbeats, which write it, too
    Column("worker", Text),
    Column("error_code", Text),
    Column("error_retryable", Boolean),
    Column("error_detail", Text),
    Column("warnings", JSONB, nullable=False),
    Column("timings", JSONB, nullable=False),
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
)

files = Table(
    "files",
    metadata,
    Column("account_id", Text, ForeignKey("accounts.id"), primary_key=True),
    Column("id", Text, primary_key=True),  # the digest of its bytes
    # `uploading` once a presigned link was given, `ready` once its bytes were seen.
    Column("state", Text, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    # As it is looked at; absent while it is uploading.
    Column("width", Integer),
    Column("height", Integer),
    Column("object_key", Text, unique=True),  # absent once the object was removed
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
    # The end of an attempt's lease while it is being sent, else when to send it next.
    _instant("next_attempt_at"),
    _instant("created_at", nullable=False),
    _instant("finished_at"),
    # Failures since it was created or replayed: its place in the schedule.
    Column("num_failures", Integer, nullable=False),
    Column("lease_token", UUID(as_uuid=False)),
    _instant("dispatched_at"),
    # Host and port of the URL, which Postgres reads from it.
    Column("receiver", Text, FetchedValue(), nullable=False),
    # Since when it waits for a receiver that fails: it is not due before that one answers.
    _instant("held_at"),
    # Why it failed: the code of its last attempt, or that its receiver stayed paused.
    Column("error_code", Text),
)

# Only receivers that failed lately have a row.
webhook_receivers = Table(
    "webhook_receivers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("receiver", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("num_failures", Integer, nullable=False),  # in a row
    Column("num_probes", Integer, nullable=False),  # that failed: the place in the back-off
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
    # Tier -> the fingerprint of the profile that is right for this worker there.
    Column("fingerprints", JSONB, nullable=False),
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
