"""The API sees one account's rows: policies, and what it may know of the others without their rows.

`calotype.account_id` is set by each transaction (`storage.database`). Views and functions run with their
owner's rights, which no policy limits, and show no prompt, account or key. The groups that are named here
are created before any migration (`storage.roles`); who may use the views is `storage.grants`.
"""

from alembic import op

revision = "0012_row_level_security"
down_revision = "0011_suspects"

ACCOUNT = "current_setting('calotype.account_id', true)"
OWN_ROWS = {
    "accounts": f"id = {ACCOUNT}",
    "jobs": f"account_id = {ACCOUNT}",
    "batches": f"account_id = {ACCOUNT}",
    "webhook_deliveries": f"account_id = {ACCOUNT}",
    "webhook_receivers": f"account_id = {ACCOUNT}",
    # Of a job or a delivery that the API itself sees.
    "images": "EXISTS (SELECT FROM jobs WHERE jobs.id = job_id)",
    "job_events": "EXISTS (SELECT FROM jobs WHERE jobs.id = job_id)",
    "webhook_attempts": "EXISTS (SELECT FROM webhook_deliveries WHERE webhook_deliveries.id = delivery_id)",
}
# The constraints on a job's lease do the rest: the API can cancel what is queued and change no other state.
WRITTEN = {"jobs": f"account_id = {ACCOUNT} AND state IN ('queued', 'running', 'canceled')"}
OTHERS = "calotype_worker, calotype_sender, calotype_sweeper"


def upgrade() -> None:
    for table, is_own in OWN_ROWS.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(
            f"""CREATE POLICY own_rows ON {table} TO calotype_api
                USING ({is_own}) WITH CHECK ({WRITTEN.get(table, is_own)})"""
        )
        op.execute(f"CREATE POLICY every_row ON {table} TO {OTHERS} USING (true)")
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
    for table in reversed(OWN_ROWS):
        op.execute(f"DROP POLICY every_row ON {table}")
        op.execute(f"DROP POLICY own_rows ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")


UP = (
    """
    CREATE VIEW open_jobs AS
        SELECT id, state, lane, tier, num_images, width, height, num_inference_steps, guidance_scale,
               guidance_cutoff, step_cache, strict, ring_number, started_at, progress, lease_boot_id
          FROM jobs WHERE state IN ('queued', 'running')
    """,
    # An account with attempts under way waits for its receivers, and is not late.
    """
    CREATE VIEW webhook_backlog AS
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
        SELECT (SELECT count(*) FROM webhook_deliveries WHERE state = 'pending') AS num_pending,
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
                           AND sending.next_attempt_at > statement_timestamp())) AS seconds_late
    """,
    """
    CREATE VIEW receivers_by_state AS
        SELECT state, count(*) AS num_receivers FROM webhook_receivers GROUP BY state
    """,
    """
    CREATE FUNCTION job_states(ids text[]) RETURNS TABLE (id text, state text)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
        BEGIN ATOMIC
            SELECT jobs.id, jobs.state FROM jobs WHERE jobs.id = ANY(ids);
        END
    """,
    # A request notes that its key was used, and never waits to do so.
    """
    CREATE FUNCTION use_key(shown_prefix text, shown_digest text, resolution_seconds float8)
        RETURNS TABLE (account_id text, key_id text)
        LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
        BEGIN ATOMIC
            WITH found AS (
                SELECT id, api_keys.account_id FROM api_keys
                 WHERE prefix = shown_prefix AND digest = shown_digest AND revoked_at IS NULL
            ), stale AS (
                SELECT api_keys.id FROM api_keys JOIN found USING (id)
                 WHERE last_used_at IS NULL
                    OR last_used_at < statement_timestamp() - make_interval(secs => resolution_seconds)
                   FOR NO KEY UPDATE OF api_keys SKIP LOCKED
            ), touched AS (
                UPDATE api_keys SET last_used_at = statement_timestamp() FROM stale
                 WHERE api_keys.id = stale.id
            )
            SELECT found.account_id, found.id FROM found;
        END
    """,
    """
    CREATE FUNCTION principal_of_session(shown_digest text) RETURNS TABLE (account_id text, key_id text)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
        BEGIN ATOMIC
            SELECT api_keys.account_id, api_keys.id
              FROM sessions JOIN api_keys ON api_keys.id = sessions.key_id
             WHERE sessions.digest = shown_digest AND sessions.ended_at IS NULL
               AND sessions.expires_at > statement_timestamp() AND api_keys.revoked_at IS NULL;
        END
    """,
    # Functions are everybody's until they are taken away.
    "REVOKE EXECUTE ON FUNCTION job_states, use_key, principal_of_session FROM PUBLIC",
)

DOWN = (
    "DROP FUNCTION principal_of_session",
    "DROP FUNCTION use_key",
    "DROP FUNCTION job_states",
    "DROP VIEW receivers_by_state",
    "DROP VIEW webhook_backlog",
    "DROP VIEW open_jobs",
)
