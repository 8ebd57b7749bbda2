"""Adds keys, tags and costs of jobs, and sums of what jobs used, which a trigger keeps (docs/adr/0032)."""

from alembic import op

revision = "0022_usage"
down_revision = "0021_bulk_in_turn"

OWN = "account_id = current_setting('calotype.account_id', true)"
DIMENSIONS = "account_id, day, key_id, batch_id, tag, tier, cost_currency"
AMOUNTS = "num_jobs, num_images, device_seconds, cost_amount"
_AMOUNT_COLUMNS = """
        num_jobs bigint NOT NULL,
        num_images bigint NOT NULL,
        device_seconds numeric NOT NULL,
        cost_amount numeric NOT NULL"""
_COLUMNS = f"""
        account_id text NOT NULL,
        day date NOT NULL,
        key_id text NOT NULL,
        batch_id text NOT NULL,
        tag text NOT NULL,
        tier text NOT NULL,
        cost_currency text NOT NULL,{_AMOUNT_COLUMNS}"""


def upgrade() -> None:
    connection = op.get_bind()
    schema = connection.dialect.identifier_preparer.quote_identifier(
        connection.exec_driver_sql("SELECT current_schema()").scalar_one()
    )
    for statement in (*COLUMNS, *TABLES, *SUMS):
        op.execute(statement.replace("OUR_SCHEMA", schema))
    for table in ("usage_changes", "usage_sums", "batch_usage"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY own_rows ON {table} TO calotype_api USING ({OWN})")
        op.execute(f"CREATE POLICY every_row ON {table} TO calotype_sweeper USING (true)")


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


COLUMNS = (
    """
    ALTER TABLE jobs
        ADD COLUMN key_id text,
        ADD COLUMN tag text,
        ADD COLUMN cost_amount numeric(20, 9),
        ADD COLUMN cost_currency text,
        ADD CONSTRAINT cost_has_currency CHECK ((cost_amount IS NULL) = (cost_currency IS NULL)),
        ADD CONSTRAINT cost_when_succeeded CHECK (cost_amount IS NULL OR state = 'succeeded')
    """,
    # Lists by a tag and any of state, tier and lane, as `jobs_by_kind` without a tag.
    """CREATE INDEX jobs_of_tag ON jobs (account_id, tag, state, tier, lane, created_at DESC, id DESC)
        WHERE tag IS NOT NULL""",
)

TABLES = (
    # What readers add to the sums below until the sweeper has folded it in. An empty text is none: a key of
    # sums has no nulls.
    f"""
    CREATE TABLE usage_changes (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,{_COLUMNS}
    )
    """,
    "CREATE INDEX usage_changes_of_batch ON usage_changes (batch_id) WHERE batch_id <> ''",
    "CREATE INDEX usage_changes_of_account ON usage_changes (account_id, day)",
    f"CREATE TABLE usage_sums ({_COLUMNS}, PRIMARY KEY ({DIMENSIONS})) WITH (fillfactor = 70)",
    "CREATE INDEX usage_of_batch ON usage_sums (batch_id) WHERE batch_id <> ''",
    "CREATE INDEX usage_of_tag ON usage_sums (account_id, tag, day) WHERE tag <> ''",
    # Each poll of a batch reads its row, where each job of a CSV may have a tag of its own in the sums above.
    f"""
    CREATE TABLE batch_usage (
        batch_id text NOT NULL,
        cost_currency text NOT NULL,
        account_id text NOT NULL,{_AMOUNT_COLUMNS},
        PRIMARY KEY (batch_id, cost_currency)
    ) WITH (fillfactor = 70)
    """,
    # By row: most statements that change jobs end none, and pay nothing for the condition. It runs with the
    # rights of the tables' owner, so that no role may write usage.
    """
    CREATE FUNCTION count_usage() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = OUR_SCHEMA, pg_temp AS $$
    BEGIN
        INSERT INTO usage_changes (account_id, day, key_id, batch_id, tag, tier, cost_currency, num_jobs,
                                   num_images, device_seconds, cost_amount)
        VALUES (NEW.account_id, (NEW.finished_at AT TIME ZONE 'UTC')::date, coalesce(NEW.key_id, ''),
                coalesce(NEW.batch_id, ''), coalesce(NEW.tag, ''), NEW.tier, coalesce(NEW.cost_currency, ''),
                1, NEW.num_images, coalesce((NEW.timings ->> 'device_seconds')::numeric, 0),
                coalesce(NEW.cost_amount, 0));
        RETURN NULL;
    END $$
    """,
    """CREATE TRIGGER count_used AFTER UPDATE ON jobs FOR EACH ROW
        WHEN (NEW.state = 'succeeded' AND OLD.state <> 'succeeded') EXECUTE FUNCTION count_usage()""",
    "REVOKE EXECUTE ON FUNCTION count_usage FROM PUBLIC",
)

SUMS = (
    f"""
    INSERT INTO usage_sums ({DIMENSIONS}, {AMOUNTS})
    SELECT account_id, (finished_at AT TIME ZONE 'UTC')::date, coalesce(key_id, ''), coalesce(batch_id, ''),
           coalesce(tag, ''), tier, coalesce(cost_currency, ''), count(*), sum(num_images),
           coalesce(sum((timings ->> 'device_seconds')::numeric), 0), coalesce(sum(cost_amount), 0)
      FROM jobs WHERE state = 'succeeded' GROUP BY 1, 2, 3, 4, 5, 6, 7""",
    f"""
    INSERT INTO batch_usage (batch_id, cost_currency, account_id, {AMOUNTS})
    SELECT batch_id, cost_currency, account_id, sum(num_jobs), sum(num_images), sum(device_seconds),
           sum(cost_amount)
      FROM usage_sums WHERE batch_id <> '' GROUP BY 1, 2, 3""",
)
"""What was used before the sums begin."""

DOWN = (
    "DROP TRIGGER count_used ON jobs",
    "DROP FUNCTION count_usage",
    "DROP TABLE batch_usage",
    "DROP TABLE usage_sums",
    "DROP TABLE usage_changes",
    "DROP INDEX jobs_of_tag",
    """ALTER TABLE jobs DROP COLUMN cost_currency, DROP COLUMN cost_amount, DROP COLUMN tag,
        DROP COLUMN key_id""",
)
