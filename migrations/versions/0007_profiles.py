"""What a step costs on each kind of device, and which of these each worker is."""

from alembic import op

revision = "0007_profiles"
down_revision = "0006_output_format"


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


UP = (
    """
    CREATE TABLE profiles (
        tier text NOT NULL,
        fingerprint text NOT NULL,
        model text NOT NULL,
        device_kind text NOT NULL,
        width integer NOT NULL CHECK (width > 0),
        height integer NOT NULL CHECK (height > 0),
        steps jsonb NOT NULL CHECK (jsonb_typeof(steps) = 'array' AND jsonb_array_length(steps) > 0),
        encode_seconds float8 NOT NULL CHECK (encode_seconds >= 0),
        decode_seconds float8 NOT NULL CHECK (decode_seconds >= 0),
        num_guided_rows integer NOT NULL CHECK (num_guided_rows > 0),
        knee_rows integer NOT NULL,
        max_rows integer NOT NULL CHECK (max_rows > 0),
        batching_pays boolean NOT NULL,
        published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (tier, fingerprint)
    )
    """,
    "ALTER TABLE workers ADD COLUMN fingerprints jsonb NOT NULL DEFAULT '{}'",
)

DOWN = (
    "ALTER TABLE workers DROP COLUMN fingerprints",
    "DROP TABLE profiles",
)
