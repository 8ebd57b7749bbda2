"""An index of the events by which jobs end unlike planned, which are looked for every second."""

from alembic import op

revision = "0015_events_that_end_jobs"
down_revision = "0014_progress_at"


def upgrade() -> None:
    # `storage.job_views` and `storage.queue_facts` ask for some of these transitions, never for another.
    op.execute(
        """CREATE INDEX events_that_end_jobs ON job_events (id)
            WHERE transition IN ('cancel', 'expire', 'fail', 'reap')"""
    )


def downgrade() -> None:
    op.execute("DROP INDEX events_that_end_jobs")
