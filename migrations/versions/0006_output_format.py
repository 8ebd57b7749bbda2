"""In which file format a job's images are written, and whether an account wants its parameters in them.

Going down forgets which images are WebP or JPEG: they are then served as PNG.
"""

from alembic import op

revision = "0006_output_format"
down_revision = "0005_less_work"


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


UP = (
    """
    ALTER TABLE jobs
        ADD COLUMN output_format text NOT NULL DEFAULT 'png'
            CHECK (output_format IN ('png', 'webp', 'jpeg')),
        ADD COLUMN output_quality integer CHECK (output_quality BETWEEN 1 AND 100),
        ADD CONSTRAINT png_without_quality CHECK (output_format <> 'png' OR output_quality IS NULL)
    """,
    "ALTER TABLE accounts ADD COLUMN embed_parameters boolean NOT NULL DEFAULT false",
)

DOWN = (
    "ALTER TABLE accounts DROP COLUMN embed_parameters",
    """
    ALTER TABLE jobs
        DROP CONSTRAINT png_without_quality,
        DROP COLUMN output_quality,
        DROP COLUMN output_format
    """,
)
