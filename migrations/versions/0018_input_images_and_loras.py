"""What a job is drawn from beside its text: input images, how far they are changed, and adapters."""

from alembic import op

revision = "0018_input_images_and_loras"
down_revision = "0017_files"

VIEW = """CREATE OR REPLACE VIEW open_jobs AS
    SELECT id, state, lane, tier, num_images, width, height, {num_steps} AS num_inference_steps,
           guidance_scale, guidance_cutoff, step_cache, strict, ring_number, started_at, progress,
           lease_boot_id, progress_at
      FROM jobs WHERE state IN ('queued', 'running')"""
# diffusers begins with an image at the step that its strength says (`get_timesteps`).
NUM_STEPS = "greatest(1, floor(num_inference_steps * coalesce(strength, 1)))::integer"
COLUMNS = {
    "image": "jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(image) = 'array')",
    "mask_image": "text",
    "control_image": "text",
    "strength": "double precision CHECK (strength BETWEEN 0 AND 1)",
    "loras": "jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(loras) = 'array')",
}


def upgrade() -> None:
    # Constant defaults are written to no old row, so that a large table is changed at once.
    for name, kind in COLUMNS.items():
        op.execute(f"ALTER TABLE jobs ADD COLUMN {name} {kind}")
    op.execute(VIEW.format(num_steps=NUM_STEPS))


def downgrade() -> None:
    op.execute(VIEW.format(num_steps="num_inference_steps"))
    for name in reversed(COLUMNS):
        op.execute(f"ALTER TABLE jobs DROP COLUMN {name}")
