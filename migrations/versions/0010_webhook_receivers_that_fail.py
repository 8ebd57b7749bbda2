"""What is known of receivers that fail, and which deliveries wait for one of them."""

from alembic import op

revision = "0010_webhook_receivers_that_fail"
down_revision = "0009_sessions"


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


QUEUE_INDEXES = (
    ("deliveries_due", "account_id, next_attempt_at, id"),
    ("deliveries_of_receiver", "account_id, receiver, next_attempt_at, id"),
)

UP = (
    """
    CREATE FUNCTION webhook_receiver(url text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS
    $$SELECT regexp_replace(
        coalesce(substring(lower(url) FROM '^https://([^/?#]*)'), ''), '[.]?([:]443)?$', '')$$
    """,
    """
    CREATE TABLE webhook_receivers (
        id text PRIMARY KEY DEFAULT 'whr_' || replace(gen_random_uuid()::text, '-', ''),
        account_id text NOT NULL REFERENCES accounts,
        receiver text NOT NULL,
        state text NOT NULL CHECK (state IN ('doubted', 'failing', 'paused', 'recovering')),
        num_failures integer NOT NULL CHECK (num_failures >= 0),
        num_probes integer NOT NULL DEFAULT 0,
        failing_since timestamptz,
        next_probe_at timestamptz,
        paused_at timestamptz,
        last_failed_at timestamptz NOT NULL,
        last_error_code text NOT NULL,
        last_error_detail text,
        UNIQUE (account_id, receiver),
        CHECK ((state = 'paused') = (paused_at IS NOT NULL)),
        CHECK (next_probe_at IS NULL OR state = 'failing')
    )
    """,
    "CREATE INDEX receivers_to_probe ON webhook_receivers (next_probe_at) WHERE state = 'failing'",
    "CREATE INDEX receivers_recovering ON webhook_receivers (id) WHERE state = 'recovering'",
    "CREATE INDEX receivers_paused ON webhook_receivers (paused_at) WHERE state = 'paused'",
    "CREATE INDEX receivers_failed ON webhook_receivers (last_failed_at)",
    """
    ALTER TABLE webhook_deliveries
        ADD COLUMN held_at timestamptz,
        ADD COLUMN error_code text,
        ADD CONSTRAINT held_while_pending CHECK (
            held_at IS NULL OR (state = 'pending' AND lease_token IS NULL AND rung_at IS NULL))
    """,
    *(f"DROP INDEX {name}" for name, _ in QUEUE_INDEXES),
    *(
        f"CREATE INDEX {name} ON webhook_deliveries ({columns}) WHERE state = 'pending' AND held_at IS NULL"
        for name, columns in QUEUE_INDEXES
    ),
    """CREATE INDEX deliveries_held ON webhook_deliveries (account_id, receiver, held_at, id)
        WHERE held_at IS NOT NULL""",
)

DOWN = (
    "DROP INDEX deliveries_held",
    *(f"DROP INDEX {name}" for name, _ in QUEUE_INDEXES),
    """
    ALTER TABLE webhook_deliveries
        DROP CONSTRAINT held_while_pending,
        DROP COLUMN error_code,
        DROP COLUMN held_at
    """,
    *(
        f"CREATE INDEX {name} ON webhook_deliveries ({columns}) WHERE state = 'pending'"
        for name, columns in QUEUE_INDEXES
    ),
    "DROP TABLE webhook_receivers",
    "DROP FUNCTION webhook_receiver(text)",
)
