"""Whose server a webhook goes to, so that one that hangs does not hold up its account's others."""

from alembic import op

revision = "0003_webhook_receivers"
down_revision = "0002_webhook_attempts"


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


UP = (
    """
    ALTER TABLE webhook_deliveries ADD COLUMN receiver text NOT NULL
        GENERATED ALWAYS AS (
            regexp_replace(
                coalesce(substring(lower(url) FROM '^https://([^/?#]*)'), ''), '[.]?([:]443)?$', ''
            )
        ) STORED
    """,
    """CREATE INDEX deliveries_of_receiver ON webhook_deliveries (account_id, receiver, next_attempt_at, id)
        WHERE state = 'pending'""",
)

DOWN = (
    "DROP INDEX deliveries_of_receiver",
    "ALTER TABLE webhook_deliveries DROP COLUMN receiver",
)
