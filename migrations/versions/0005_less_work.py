"""What a job may leave out: guidance in its last steps, and most of the model in some of them."""

from alembic import op

revision = "0005_less_work"
down_revision = "0004_strict"


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


UP = (
    """
    ALTER TABLE jobs
        ADD COLUMN guidance_cutoff float8 NOT NULL DEFAULT 1
            CHECK (guidance_cutoff >= 0 AND guidance_cutoff <= 1),
        ADD COLUMN step_cache integer NOT NULL DEFAULT 1 CHECK (step_cache >= 1)
    """,
)

DOWN = ("ALTER TABLE jobs DROP COLUMN step_cache, DROP COLUMN guidance_cutoff",)
