"""Lets operators drain workers and pause tiers (docs/howto/run-workers-on-gpus.md)."""

from alembic import op

revision = "0025_pauses"
down_revision = "0024_possible_crashes"


def upgrade() -> None:
    op.execute("ALTER TABLE workers ADD COLUMN drain_requested_at timestamptz")
    op.execute(
        """
        CREATE TABLE paused_tiers (
            tier text PRIMARY KEY,
            reason text NOT NULL,
            paused_at timestamptz NOT NULL DEFAULT clock_timestamp()
        )
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE paused_tiers")
    op.execute("ALTER TABLE workers DROP COLUMN drain_requested_at")
