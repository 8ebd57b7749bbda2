"""What shallow steps cost beside full ones, and whether a profile was measured or seen of jobs."""

from alembic import op

revision = "0008_learned_profiles"
down_revision = "0007_profiles"


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


UP = (
    """
    ALTER TABLE profiles
        ADD COLUMN shallow_share float8 NOT NULL DEFAULT 1
            CHECK (shallow_share > 0 AND shallow_share <= 1),
        ADD COLUMN is_learned boolean NOT NULL DEFAULT false
    """,
)

DOWN = (
    # Who reads the table below this version takes every row for measured.
    "DELETE FROM profiles WHERE is_learned",
    "ALTER TABLE profiles DROP COLUMN is_learned, DROP COLUMN shallow_share",
)
