"""Adds the processes that may have crashed while they ran a job alone (docs/adr/0037)."""

from alembic import op

revision = "0024_possible_crashes"
down_revision = "0023_open_work"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE possible_crashes (
            job_id text NOT NULL REFERENCES jobs ON DELETE CASCADE,
            boot_id text NOT NULL,
            lost_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            PRIMARY KEY (job_id, boot_id)
        )
        """
    )
    op.execute("CREATE INDEX possible_crashes_of_process ON possible_crashes (boot_id)")
    op.execute("CREATE INDEX possible_crashes_by_age ON possible_crashes (lost_at)")


def downgrade() -> None:
    op.execute("DROP TABLE possible_crashes")
