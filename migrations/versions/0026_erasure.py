"""Lets owners delete images and erase jobs, and the sweeper erase old ones (docs/adr/0038)."""

from alembic import op

revision = "0026_erasure"
down_revision = "0025_pauses"

OWN = "account_id = current_setting('calotype.account_id', true)"
OTHERS = "calotype_worker, calotype_sender, calotype_sweeper"
ENDED = "state IN ('succeeded', 'failed', 'canceled', 'expired')"


def upgrade() -> None:
    connection = op.get_bind()
    schema = connection.dialect.identifier_preparer.quote_identifier(
        connection.exec_driver_sql("SELECT current_schema()").scalar_one()
    )
    for statement in UP:
        op.execute(statement.replace("OUR_SCHEMA", schema))


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


UP = (
    # Of a backup that did not have its object.
    "ALTER TABLE images ADD COLUMN missing_at timestamptz",
    # What is left of an erased job: that it was there, so that its objects and its idempotency key are known.
    """
    CREATE TABLE erased_jobs (
        job_id text PRIMARY KEY,
        account_id text NOT NULL REFERENCES accounts,
        key_digest text,
        erased_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    "CREATE INDEX erased_keys ON erased_jobs (account_id, key_digest) WHERE key_digest IS NOT NULL",
    "ALTER TABLE erased_jobs ENABLE ROW LEVEL SECURITY",
    f"CREATE POLICY own_rows ON erased_jobs TO calotype_api USING ({OWN})",
    f"CREATE POLICY every_row ON erased_jobs TO {OTHERS} USING (true)",
    # Written with the change that makes an object needless, and deleted once the object is gone.
    """
    CREATE TABLE needless_objects (
        object_key text PRIMARY KEY,
        since timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    "CREATE INDEX needless_objects_by_age ON needless_objects (since)",
    # An erased job stays the `retry_of` of others, whose rows do not change.
    "ALTER TABLE jobs DROP CONSTRAINT jobs_retry_of_fkey",
    # What an erased job was counted as, it stays: a batch does not begin again.
    "DROP TRIGGER count_deleted ON jobs",
    """
    CREATE FUNCTION guard_deletion() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'job % is % and cannot be deleted', OLD.id, OLD.state
            USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    """CREATE TRIGGER guard_deletion BEFORE DELETE ON jobs FOR EACH ROW
        WHEN (OLD.state IN ('queued', 'running')) EXECUTE FUNCTION guard_deletion()""",
    """
    CREATE FUNCTION guard_image() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'image % of job % does not change', OLD.index, OLD.job_id
            USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    """CREATE TRIGGER guard_image BEFORE UPDATE ON images FOR EACH ROW
        WHEN (to_jsonb(OLD) - 'deleted_at' - 'missing_at' <> to_jsonb(NEW) - 'deleted_at' - 'missing_at'
              OR OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS DISTINCT FROM OLD.deleted_at)
        EXECUTE FUNCTION guard_image()""",
    f"""
    CREATE FUNCTION delete_own_images(of_job text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = OUR_SCHEMA, pg_temp AS $$
    BEGIN
        PERFORM FROM jobs WHERE id = of_job AND {OWN} AND {ENDED};
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        WITH deleted AS (
            UPDATE images SET deleted_at = clock_timestamp() WHERE job_id = of_job AND deleted_at IS NULL
            RETURNING object_key
        )
        INSERT INTO needless_objects (object_key) SELECT object_key FROM deleted ON CONFLICT DO NOTHING;
        RETURN true;
    END $$
    """,
    # Only the functions below call it: it does not ask whose the jobs are. Jobs that have not ended stay.
    f"""
    CREATE FUNCTION erase_jobs(ids text[]) RETURNS integer LANGUAGE plpgsql
        SET search_path = OUR_SCHEMA, pg_temp AS $$
    DECLARE
        ended text[];
        named text[];
    BEGIN
        ended := ARRAY(SELECT id FROM jobs WHERE id = ANY(ids) AND {ENDED} ORDER BY id FOR UPDATE);
        INSERT INTO needless_objects (object_key)
            SELECT object_key FROM images WHERE job_id = ANY(ended) ON CONFLICT DO NOTHING;
        DELETE FROM images WHERE job_id = ANY(ended);
        DELETE FROM job_events WHERE job_id = ANY(ended);
        DELETE FROM webhook_attempts USING webhook_deliveries
         WHERE delivery_id = webhook_deliveries.id AND webhook_deliveries.job_id = ANY(ended);
        DELETE FROM webhook_deliveries WHERE job_id = ANY(ended);
        -- Whoever links a job to a file locks the file first, so that none is linked while this looks.
        named := ARRAY(SELECT files.id FROM files JOIN job_files ON job_files.file_id = files.id
                                                             AND job_files.account_id = files.account_id
                        WHERE job_id = ANY(ended) ORDER BY files.account_id, files.id FOR UPDATE OF files);
        WITH unlinked AS (
            DELETE FROM job_files WHERE job_id = ANY(ended) RETURNING account_id, file_id
        )
        UPDATE files SET deleted_at = clock_timestamp() FROM unlinked
         WHERE files.account_id = unlinked.account_id AND files.id = unlinked.file_id
           AND files.id = ANY(named) AND deleted_at IS NULL
           AND NOT EXISTS (SELECT FROM job_files AS others
                            WHERE others.account_id = files.account_id AND others.file_id = files.id
                              AND others.job_id <> ALL(ended));
        INSERT INTO erased_jobs (job_id, account_id, key_digest)
            SELECT id, account_id, encode(sha256(convert_to(idempotency_key, 'UTF8')), 'hex')
              FROM jobs WHERE id = ANY(ended);
        DELETE FROM jobs WHERE id = ANY(ended);
        RETURN cardinality(ended);
    END $$
    """,
    f"""
    CREATE FUNCTION erase_own_job(of_job text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = OUR_SCHEMA, pg_temp AS $$
    BEGIN
        RETURN erase_jobs(ARRAY(SELECT id FROM jobs WHERE id = of_job AND {OWN})) = 1;
    END $$
    """,
    # Jobs that another sweeper erases are passed over.
    """
    CREATE FUNCTION erase_old_jobs(of_lane text, kept_seconds float8, max_jobs integer) RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = OUR_SCHEMA, pg_temp AS $$
    BEGIN
        RETURN erase_jobs(ARRAY(
            SELECT id FROM jobs
             WHERE lane = of_lane
               AND finished_at < statement_timestamp() - make_interval(secs => kept_seconds)
             ORDER BY finished_at LIMIT max_jobs FOR UPDATE SKIP LOCKED));
    END $$
    """,
    """REVOKE EXECUTE ON FUNCTION guard_deletion, guard_image, delete_own_images, erase_jobs, erase_own_job,
                                  erase_old_jobs FROM PUBLIC""",
    "CREATE INDEX jobs_by_end ON jobs (lane, finished_at) WHERE finished_at IS NOT NULL",
)

DOWN = (
    "DROP INDEX jobs_by_end",
    "DROP FUNCTION erase_old_jobs",
    "DROP FUNCTION erase_own_job",
    "DROP FUNCTION erase_jobs",
    "DROP FUNCTION delete_own_images",
    "DROP TRIGGER guard_image ON images",
    "DROP FUNCTION guard_image",
    "DROP TRIGGER guard_deletion ON jobs",
    "DROP FUNCTION guard_deletion",
    """CREATE TRIGGER count_deleted AFTER DELETE ON jobs REFERENCING OLD TABLE AS before_rows
        FOR EACH STATEMENT EXECUTE FUNCTION count_jobs()""",
    # Retries of erased jobs stay as they are: the constraint holds for new rows alone.
    "ALTER TABLE jobs ADD CONSTRAINT jobs_retry_of_fkey FOREIGN KEY (retry_of) REFERENCES jobs NOT VALID",
    "DROP TABLE needless_objects",
    "ALTER TABLE images DROP COLUMN missing_at",
    "DROP TABLE erased_jobs",
)
