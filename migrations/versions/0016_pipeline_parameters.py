"""What a job asks of its model's own pipeline, beside the parameters that every model has."""

from alembic import op

revision = "0016_pipeline_parameters"
down_revision = "0015_events_that_end_jobs"


def upgrade() -> None:
    # A constant default is written to no old row, so that a large table is changed at once.
    op.execute(
        """ALTER TABLE jobs ADD COLUMN pipeline_parameters jsonb NOT NULL DEFAULT '{}'
            CHECK (jsonb_typeof(pipeline_parameters) = 'object')"""
    )


def downgrade() -> None:
    op.execute("ALTER TABLE jobs DROP COLUMN pipeline_parameters")
