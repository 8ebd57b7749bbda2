"""Adds a function that tells which bulk jobs workers claim next, over all accounts, without naming these."""

from alembic import op

revision = "0021_bulk_in_turn"
down_revision = "0020_reads_in_proportion"

# Accounts by a loose index scan, one probe for each, and of each account as many jobs as its share.
FUNCTION = """
    CREATE FUNCTION next_bulk_jobs(wanted_tiers text[], num_jobs int) RETURNS TABLE (id text, place bigint)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
        BEGIN ATOMIC
            WITH RECURSIVE waiting AS (
                SELECT tiers.tier, first.account_id, 1 AS position
                  FROM unnest(wanted_tiers) AS tiers(tier)
                 CROSS JOIN LATERAL (
                        SELECT account_id FROM jobs
                         WHERE state = 'queued' AND tier = tiers.tier AND lane = 'bulk'
                           AND dispatch_number IS NULL AND NOT quarantined
                           AND next_dispatch_at <= statement_timestamp()
                           AND (deadline_at IS NULL OR deadline_at > statement_timestamp())
                         ORDER BY account_id LIMIT 1) AS first
                UNION ALL
                SELECT waiting.tier, next.account_id, waiting.position + 1
                  FROM waiting
                 CROSS JOIN LATERAL (
                        SELECT account_id FROM jobs
                         WHERE state = 'queued' AND tier = waiting.tier AND lane = 'bulk'
                           AND dispatch_number IS NULL AND NOT quarantined
                           AND next_dispatch_at <= statement_timestamp()
                           AND (deadline_at IS NULL OR deadline_at > statement_timestamp())
                           AND account_id > waiting.account_id
                         ORDER BY account_id LIMIT 1) AS next
                 WHERE waiting.position < num_jobs
            ), shares AS (
                SELECT tier, (num_jobs + count(*) - 1) / count(*) AS num_jobs FROM waiting GROUP BY tier
            )
            SELECT placed.id, placed.place
              FROM (SELECT oldest.id, row_number() OVER (
                               PARTITION BY waiting.tier ORDER BY oldest.turn, waiting.position) AS place
                      FROM waiting JOIN shares USING (tier)
                     CROSS JOIN LATERAL (
                            SELECT jobs.id, row_number() OVER (ORDER BY created_at, jobs.id) AS turn
                              FROM jobs
                             WHERE state = 'queued' AND tier = waiting.tier AND lane = 'bulk'
                               AND dispatch_number IS NULL AND account_id = waiting.account_id
                               AND NOT quarantined AND next_dispatch_at <= statement_timestamp()
                           AND (deadline_at IS NULL OR deadline_at > statement_timestamp())
                             ORDER BY created_at, jobs.id LIMIT shares.num_jobs) AS oldest) AS placed
             WHERE placed.place <= num_jobs;
        END
"""


def upgrade() -> None:
    op.execute(FUNCTION)
    op.execute("REVOKE EXECUTE ON FUNCTION next_bulk_jobs FROM PUBLIC")


def downgrade() -> None:
    op.execute("DROP FUNCTION next_bulk_jobs")
