"""Files of accounts that jobs start from, and which jobs name them.

A file's id is its content, and its key holds the account: two accounts with the same bytes have two rows, and
neither finds out about the other. `expires_at` is null once a job has named it.
"""

from alembic import op

revision = "0017_files"
down_revision = "0016_pipeline_parameters"

OWN = "account_id = current_setting('calotype.account_id', true)"
OTHERS = "calotype_worker, calotype_sweeper"


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)
    for table in ("files", "job_files"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY own_rows ON {table} TO calotype_api USING ({OWN}) WITH CHECK ({OWN})")
        op.execute(f"CREATE POLICY every_row ON {table} TO {OTHERS} USING (true)")


def downgrade() -> None:
    op.execute("DROP TABLE job_files")
    op.execute("DROP TABLE files")


UP = (
    """
    CREATE TABLE files (
        account_id text NOT NULL REFERENCES accounts,
        id text NOT NULL CHECK (id ~ '^file_[0-9a-f]{64}$'),
        state text NOT NULL CHECK (state IN ('uploading', 'ready')),
        media_type text NOT NULL,
        num_bytes bigint NOT NULL CHECK (num_bytes > 0),
        width integer CHECK (width > 0),
        height integer CHECK (height > 0),
        object_key text UNIQUE,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz,
        deleted_at timestamptz,
        PRIMARY KEY (account_id, id),
        CHECK (state = 'uploading' OR (width IS NOT NULL AND height IS NOT NULL)),
        CHECK (object_key IS NOT NULL OR deleted_at IS NOT NULL)
    )
    """,
    """CREATE INDEX files_of_account ON files (account_id, created_at DESC, id DESC)
        WHERE state = 'ready' AND deleted_at IS NULL""",
    "CREATE INDEX files_expire ON files (expires_at) WHERE expires_at IS NOT NULL AND deleted_at IS NULL",
    """CREATE INDEX files_deleted ON files (deleted_at)
        WHERE deleted_at IS NOT NULL AND object_key IS NOT NULL""",
    """
    CREATE TABLE job_files (
        account_id text NOT NULL,
        job_id text NOT NULL REFERENCES jobs,
        file_id text NOT NULL,
        PRIMARY KEY (job_id, file_id),
        FOREIGN KEY (account_id, file_id) REFERENCES files
    )
    """,
    "CREATE INDEX jobs_of_file ON job_files (account_id, file_id)",
)
