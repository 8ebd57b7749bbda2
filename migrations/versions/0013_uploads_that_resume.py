"""How a batch's file was read, the earlier jobs that its rows speak of, and an index of retries.

A file of which every row is done or under way makes a batch without jobs.
"""

from alembic import op

revision = "0013_uploads_that_resume"
down_revision = "0012_row_level_security"


def upgrade() -> None:
    op.execute("ALTER TABLE batches ADD COLUMN reading jsonb NOT NULL DEFAULT '{}'")
    op.execute("ALTER TABLE batches ADD COLUMN earlier_jobs jsonb NOT NULL DEFAULT '[]'")
    op.execute("ALTER TABLE batches DROP CONSTRAINT batches_num_jobs_check")
    op.execute("ALTER TABLE batches ADD CONSTRAINT batches_num_jobs_check CHECK (num_jobs >= 0)")
    op.execute("CREATE INDEX jobs_retried ON jobs (retry_of) WHERE retry_of IS NOT NULL")


def downgrade() -> None:
    op.execute("DROP INDEX jobs_retried")
    # What has no jobs is nothing to the version before, and what tells of it goes with it.
    empty = "SELECT id FROM batches WHERE num_jobs = 0"
    op.execute(
        f"""DELETE FROM webhook_attempts WHERE delivery_id IN
            (SELECT id FROM webhook_deliveries WHERE batch_id IN ({empty}))"""
    )
    op.execute(f"DELETE FROM webhook_deliveries WHERE batch_id IN ({empty})")
    op.execute("DELETE FROM batches WHERE num_jobs = 0")
    op.execute("ALTER TABLE batches DROP CONSTRAINT batches_num_jobs_check")
    op.execute("ALTER TABLE batches ADD CONSTRAINT batches_num_jobs_check CHECK (num_jobs > 0)")
    op.execute("ALTER TABLE batches DROP COLUMN earlier_jobs")
    op.execute("ALTER TABLE batches DROP COLUMN reading")
