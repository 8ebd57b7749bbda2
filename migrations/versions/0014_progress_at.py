"""When the progress of a running job was last written: an estimate counts on from there."""

from alembic import op

revision = "0014_progress_at"
down_revision = "0013_uploads_that_resume"

COLUMNS = """id, state, lane, tier, num_images, width, height, num_inference_steps, guidance_scale,
             guidance_cutoff, step_cache, strict, ring_number, started_at, progress, lease_boot_id"""
VIEW = "CREATE OR REPLACE VIEW open_jobs AS SELECT {columns} FROM jobs WHERE state IN ('queued', 'running')"


def upgrade() -> None:
    # No index holds it or `progress`, so that a write of both stays within its page (a HOT update).
    op.execute("ALTER TABLE jobs ADD COLUMN progress_at timestamptz")
    op.execute(VIEW.format(columns=f"{COLUMNS}, progress_at"))


def downgrade() -> None:
    op.execute("DROP VIEW open_jobs")
    op.execute(VIEW.format(columns=COLUMNS))
    op.execute("ALTER TABLE jobs DROP COLUMN progress_at")
