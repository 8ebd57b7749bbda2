"""Webhooks, sent: attempts and their leases, when a delivery was rung, and where a batch reports its end."""

from alembic import op

revision = "0002_webhook_attempts"
down_revision = "0001_accounts_jobs_and_workers"


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


UP = (
    """
    ALTER TABLE accounts
        ADD COLUMN previous_webhook_secret text,
        ADD COLUMN previous_webhook_secret_until timestamptz
    """,
    "ALTER TABLE batches ADD COLUMN webhook_url text",
    """
    ALTER TABLE webhook_deliveries
        ADD COLUMN num_failures integer NOT NULL DEFAULT 0,
        ADD COLUMN lease_token uuid,
        ADD COLUMN rung_at timestamptz,
        ADD CONSTRAINT due_while_pending CHECK ((state = 'pending') = (next_attempt_at IS NOT NULL)),
        ADD CONSTRAINT sent_while_pending CHECK (
            state = 'pending' OR (lease_token IS NULL AND rung_at IS NULL))
    """,
    # While it is being sent, `next_attempt_at` is the end of its lease: who died in between is found as due.
    "DROP INDEX deliveries_due",
    """CREATE INDEX deliveries_due ON webhook_deliveries (account_id, next_attempt_at, id)
        WHERE state = 'pending'""",
    """CREATE INDEX deliveries_under_way ON webhook_deliveries (account_id)
        WHERE state = 'pending' AND (lease_token IS NOT NULL OR rung_at IS NOT NULL)""",
    "CREATE INDEX deliveries_of_account ON webhook_deliveries (account_id, created_at DESC, id DESC)",
    """
    CREATE TABLE webhook_attempts (
        delivery_id text NOT NULL REFERENCES webhook_deliveries,
        number integer NOT NULL CHECK (number > 0),
        started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        milliseconds integer,
        response_status integer,
        error_code text,
        error_detail text,
        answer text,
        PRIMARY KEY (delivery_id, number)
    )
    """,
)

DOWN = (
    "DROP TABLE webhook_attempts",
    "DROP INDEX deliveries_of_account",
    "DROP INDEX deliveries_under_way",
    "DROP INDEX deliveries_due",
    "CREATE INDEX deliveries_due ON webhook_deliveries (next_attempt_at) WHERE state = 'pending'",
    """
    ALTER TABLE webhook_deliveries
        DROP CONSTRAINT sent_while_pending,
        DROP CONSTRAINT due_while_pending,
        DROP COLUMN rung_at,
        DROP COLUMN lease_token,
        DROP COLUMN num_failures
    """,
    "ALTER TABLE batches DROP COLUMN webhook_url",
    """
    ALTER TABLE accounts
        DROP COLUMN previous_webhook_secret_until,
        DROP COLUMN previous_webhook_secret
    """,
)
