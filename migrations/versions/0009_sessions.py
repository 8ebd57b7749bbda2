"""Sessions as rows, so that a sign-out or a revoked key ends one at once in every web process."""

from alembic import op

revision = "0009_sessions"
down_revision = "0008_learned_profiles"


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE sessions")


UP = (
    # The cookie's value is not in it: a dump of the database opens no session.
    """
    CREATE TABLE sessions (
        digest text PRIMARY KEY,
        key_id text NOT NULL REFERENCES api_keys,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz NOT NULL,
        ended_at timestamptz
    )
    """,
    "CREATE INDEX sessions_expire ON sessions (expires_at)",
)
