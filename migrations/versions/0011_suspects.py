"""An index of the suspects that wait: every worker looks for one every second."""

from alembic import op

revision = "0011_suspects"
down_revision = "0010_webhook_receivers_that_fail"


def upgrade() -> None:
    op.execute("CREATE INDEX jobs_suspected ON jobs (created_at, id) WHERE state = 'queued' AND suspect")
    # They are taken up without a bell from now on.
    op.execute("UPDATE jobs SET ring_number = NULL WHERE state = 'queued' AND suspect")


def downgrade() -> None:
    op.execute("DROP INDEX jobs_suspected")
