"""Indexes and counters with which every statement reads in proportion to its result (docs/adr/0030).

An index costs an entry at every change of a job's state while its condition holds, since such a change is
never a HOT update; a renewed lease and written progress are HOT updates as long as no index covers them.
"""

from alembic import op

revision = "0020_reads_in_proportion"
down_revision = "0019_plain_words"

STATES = ("queued", "running", "succeeded", "failed", "canceled", "expired")
OWN = "account_id = current_setting('calotype.account_id', true)"
OTHERS = "calotype_worker, calotype_sender, calotype_sweeper"


def upgrade() -> None:
    connection = op.get_bind()
    schema = connection.dialect.identifier_preparer.quote_identifier(
        connection.exec_driver_sql("SELECT current_schema()").scalar_one()
    )
    # Triggers first: creating one locks out every writer of jobs, so that none is missed by the first count.
    for statement in (*COUNTERS, *SUMS, *VIEWS, *INDEXES):
        op.execute(statement.replace("OUR_SCHEMA", schema))
    for table in ("batch_counts", "job_count_changes"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY own_rows ON {table} TO calotype_api USING ({OWN})")
        op.execute(f"CREATE POLICY every_row ON {table} TO {OTHERS} USING (true)")


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)


_KEY = "tier, lane, CASE WHEN batch_id IS NOT NULL THEN account_id END, batch_id"
_SUMS = {state: f"coalesce(sum(num) FILTER (WHERE state = '{state}'), 0)" for state in STATES}
_AFTER = "SELECT tier, lane, account_id, batch_id, state, finished_at, 1 AS num FROM after_rows"
_BEFORE = """SELECT tier, lane, account_id, batch_id, state, NULL::timestamptz AS finished_at, -1 AS num
               FROM before_rows"""


def _count(rows: str, of_batch: str = "true") -> str:
    # A job without a batch is counted only while it is queued.
    return f"""
        INSERT INTO job_count_changes (tier, lane, account_id, batch_id, {", ".join(STATES)}, finished_at)
        SELECT {_KEY}, {", ".join(_SUMS.values())}, max(finished_at)
          FROM ({rows}) AS changed GROUP BY 1, 2, 3, 4
        HAVING {_SUMS["queued"]} <> 0 OR (batch_id IS NOT NULL AND {of_batch})"""


COUNTERS = (
    # What readers add to the sums below until the sweeper has folded it in. Rows are only inserted and
    # deleted, so that no transaction waits for another one's count.
    f"""
    CREATE TABLE job_count_changes (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tier text NOT NULL,
        lane text NOT NULL,
        account_id text,
        batch_id text,
        {", ".join(f"{state} integer NOT NULL" for state in STATES)},
        finished_at timestamptz
    )
    """,
    "CREATE INDEX count_changes_of_batch ON job_count_changes (batch_id) WHERE batch_id IS NOT NULL",
    """
    CREATE TABLE queue_counts (
        tier text NOT NULL,
        lane text NOT NULL,
        queued bigint NOT NULL,
        PRIMARY KEY (tier, lane)
    )
    """,
    f"""
    CREATE TABLE batch_counts (
        batch_id text NOT NULL,
        tier text NOT NULL,
        account_id text NOT NULL,
        {", ".join(f"{state} bigint NOT NULL" for state in STATES)},
        finished_at timestamptz,
        PRIMARY KEY (batch_id, tier)
    ) WITH (fillfactor = 70)
    """,
    """
    CREATE TABLE delivery_count_changes (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        pending integer NOT NULL
    )
    """,
    "CREATE TABLE delivery_counts (id integer PRIMARY KEY CHECK (id = 1), pending bigint NOT NULL)",
    # Whatever statement changes a job is counted, in its own transaction. The functions run with the rights
    # of the tables' owner, so that no role may write a count.
    f"""
    CREATE FUNCTION count_jobs() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = OUR_SCHEMA, pg_temp AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            {_count(_AFTER)};
        ELSIF TG_OP = 'UPDATE' THEN
            {_count(f"{_AFTER} UNION ALL {_BEFORE}", of_batch=f"{_SUMS['running']} <> 0")};
        ELSE
            {_count(_BEFORE)};
        END IF;
        RETURN NULL;
    END $$
    """,
    """CREATE TRIGGER count_inserted AFTER INSERT ON jobs REFERENCING NEW TABLE AS after_rows
        FOR EACH STATEMENT EXECUTE FUNCTION count_jobs()""",
    """CREATE TRIGGER count_updated AFTER UPDATE ON jobs
        REFERENCING NEW TABLE AS after_rows OLD TABLE AS before_rows
        FOR EACH STATEMENT EXECUTE FUNCTION count_jobs()""",
    """CREATE TRIGGER count_deleted AFTER DELETE ON jobs REFERENCING OLD TABLE AS before_rows
        FOR EACH STATEMENT EXECUTE FUNCTION count_jobs()""",
    # By row: most statements that could insert a delivery insert none.
    """
    CREATE FUNCTION count_deliveries() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = OUR_SCHEMA, pg_temp AS $$
    BEGIN
        INSERT INTO delivery_count_changes (pending) VALUES (
            CASE WHEN TG_OP <> 'DELETE' AND NEW.state = 'pending' THEN 1 ELSE 0 END
            - CASE WHEN TG_OP <> 'INSERT' AND OLD.state = 'pending' THEN 1 ELSE 0 END);
        RETURN NULL;
    END $$
    """,
    """CREATE TRIGGER count_inserted AFTER INSERT ON webhook_deliveries FOR EACH ROW
        WHEN (NEW.state = 'pending') EXECUTE FUNCTION count_deliveries()""",
    """CREATE TRIGGER count_updated AFTER UPDATE ON webhook_deliveries FOR EACH ROW
        WHEN ((OLD.state = 'pending') <> (NEW.state = 'pending')) EXECUTE FUNCTION count_deliveries()""",
    """CREATE TRIGGER count_deleted AFTER DELETE ON webhook_deliveries FOR EACH ROW
        WHEN (OLD.state = 'pending') EXECUTE FUNCTION count_deliveries()""",
    "REVOKE EXECUTE ON FUNCTION count_jobs, count_deliveries FROM PUBLIC",
)

_BACKLOG = """
    CREATE OR REPLACE VIEW webhook_backlog AS
        WITH RECURSIVE waiting AS (
            (SELECT account_id FROM webhook_deliveries WHERE state = 'pending' AND held_at IS NULL
              ORDER BY account_id LIMIT 1)
            UNION ALL
            SELECT (SELECT next.account_id FROM webhook_deliveries AS next
                     WHERE next.state = 'pending' AND next.held_at IS NULL
                       AND next.account_id > waiting.account_id
                     ORDER BY next.account_id LIMIT 1)
              FROM waiting WHERE waiting.account_id IS NOT NULL
        )
        SELECT {num_pending} AS num_pending,
               (SELECT coalesce(
                           max(extract(epoch FROM statement_timestamp() - oldest.next_attempt_at)), 0)::float8
                  FROM waiting
                 CROSS JOIN LATERAL (
                        SELECT next_attempt_at FROM webhook_deliveries
                         WHERE account_id = waiting.account_id AND state = 'pending' AND held_at IS NULL
                           AND next_attempt_at <= statement_timestamp()
                         ORDER BY next_attempt_at LIMIT 1) AS oldest
                 WHERE NOT EXISTS (
                        SELECT FROM webhook_deliveries AS sending
                         WHERE sending.account_id = waiting.account_id AND sending.state = 'pending'
                           AND lease_token IS NOT NULL
                           AND sending.next_attempt_at > statement_timestamp())) AS seconds_late"""
_COUNTED_PENDING = """(SELECT coalesce(sum(pending), 0)::bigint
                  FROM (SELECT pending FROM delivery_counts
                        UNION ALL SELECT pending FROM delivery_count_changes) AS counts)"""

# Sums over all accounts, without accounts.
VIEWS = (
    """
    CREATE VIEW queue_depths AS
        SELECT tier, lane, sum(queued)::bigint AS queued
          FROM (SELECT tier, lane, queued FROM queue_counts
                UNION ALL SELECT tier, lane, queued FROM job_count_changes) AS counts
         GROUP BY tier, lane HAVING sum(queued) <> 0
    """,
    _BACKLOG.format(num_pending=_COUNTED_PENDING),
)

# What is counted when the counters begin.
SUMS = (
    """INSERT INTO queue_counts
       SELECT tier, lane, count(*) FROM jobs WHERE state = 'queued' GROUP BY tier, lane""",
    f"""INSERT INTO batch_counts
        SELECT batch_id, tier, account_id,
               {", ".join(f"count(*) FILTER (WHERE state = '{state}')" for state in STATES)}, max(finished_at)
          FROM jobs WHERE batch_id IS NOT NULL GROUP BY batch_id, tier, account_id""",
    "INSERT INTO delivery_counts SELECT 1, count(*) FROM webhook_deliveries WHERE state = 'pending'",
)

CREATED = (
    # Jobs for which no message is sent, account by account, the oldest first.
    (
        "jobs_undispatched",
        "jobs (tier, lane, account_id, created_at, id)"
        " WHERE state = 'queued' AND dispatch_number IS NULL AND NOT quarantined",
    ),
    # The age of the oldest queued job.
    ("jobs_queued", "jobs (tier, lane, created_at) WHERE state = 'queued'"),
    # Every worker looks for the next one each second.
    ("jobs_quarantined", "jobs (tier, lane, created_at, id) WHERE state = 'queued' AND quarantined"),
    # Jobs of a worker, and all leases for the reaper: `lease_expires_at` itself is in no index, so that a
    # heartbeat, which writes it, is a HOT update.
    ("jobs_running", "jobs (lease_boot_id) WHERE state = 'running'"),
    # Lists by any of state, tier and lane: each combination is a range in the order of the list.
    ("jobs_by_kind", "jobs (account_id, state, tier, lane, created_at DESC, id DESC)"),
    # The same within a batch, and its open jobs.
    ("jobs_of_batch", "jobs (batch_id, state, tier, created_at DESC, id DESC) WHERE batch_id IS NOT NULL"),
    # Lists by state, and with each state in turn the whole list.
    ("deliveries_of_account", "webhook_deliveries (account_id, state, created_at DESC, id DESC)"),
    # Rows of workers stay when their processes end.
    ("workers_not_stopped", "workers (seen_at) WHERE stopped_at IS NULL"),
)
REMOVED = (
    (
        "jobs_to_feed",
        "jobs (tier, lane, account_id, created_at, id) WHERE state = 'queued' AND dispatch_number IS NULL",
    ),
    ("jobs_leased", "jobs (lease_expires_at) WHERE state = 'running'"),
    ("jobs_quarantined", "jobs (created_at, id) WHERE state = 'queued' AND quarantined"),
    ("jobs_of_batch", "jobs (batch_id, state) WHERE batch_id IS NOT NULL"),
    ("deliveries_of_account", "webhook_deliveries (account_id, created_at DESC, id DESC)"),
)

INDEXES = (
    *(f"DROP INDEX {name}" for name, _ in REMOVED),
    *(f"CREATE INDEX {name} ON {what}" for name, what in CREATED),
    # A job without a batch needs no entry in it, at none of its changes of state.
    "ALTER TABLE jobs DROP CONSTRAINT jobs_batch_id_batch_line_key",
    "CREATE UNIQUE INDEX jobs_of_line ON jobs (batch_id, batch_line) WHERE batch_id IS NOT NULL",
)

DOWN = (
    "DROP INDEX jobs_of_line",
    "ALTER TABLE jobs ADD UNIQUE (batch_id, batch_line)",
    *(f"DROP INDEX {name}" for name, _ in reversed(CREATED)),
    *(f"CREATE INDEX {name} ON {what}" for name, what in REMOVED),
    _BACKLOG.format(num_pending="(SELECT count(*) FROM webhook_deliveries WHERE state = 'pending')"),
    "DROP VIEW queue_depths",
    *(
        f"DROP TRIGGER {name} ON {table}"
        for table in ("webhook_deliveries", "jobs")
        for name in ("count_deleted", "count_updated", "count_inserted")
    ),
    "DROP FUNCTION count_deliveries",
    "DROP FUNCTION count_jobs",
    "DROP TABLE delivery_counts",
    "DROP TABLE delivery_count_changes",
    "DROP TABLE batch_counts",
    "DROP TABLE queue_counts",
    "DROP TABLE job_count_changes",
)
