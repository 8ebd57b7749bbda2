"""Which bulk jobs are claimed next: accounts in turn, and the oldest jobs of each first.

It reads one row for each account and each job that it finds, however many wait. It claims nothing, and does
not know which account had the last turn.
"""

from storage.paused_tiers import NOT_PAUSED

_IS_DUE = """AND NOT quarantined AND next_dispatch_at <= statement_timestamp()
                    AND (deadline_at IS NULL OR deadline_at > statement_timestamp())"""
"""Also of an account's first job: an account whose jobs all wait for a retry must take no turn."""
NEXT_BULK = f"""
    WITH RECURSIVE waiting AS (
        (SELECT tiers.tier, first.account_id, first.has_wrapped, 1 AS position
           FROM unnest(CAST(:tiers AS text[])) AS tiers(tier)
          CROSS JOIN LATERAL (
                (SELECT account_id, false AS has_wrapped FROM jobs
                  WHERE state = 'queued' AND tier = tiers.tier AND lane = 'bulk' AND dispatch_number IS NULL
                    {_IS_DUE} AND account_id > :after_account ORDER BY account_id LIMIT 1)
                UNION ALL
                (SELECT account_id, true FROM jobs
                  WHERE state = 'queued' AND tier = tiers.tier AND lane = 'bulk' AND dispatch_number IS NULL
                    {_IS_DUE} AND account_id <= :after_account ORDER BY account_id LIMIT 1)
                LIMIT 1) AS first
          WHERE {NOT_PAUSED.format(tier="tiers.tier")})
        UNION ALL
        SELECT waiting.tier, next.account_id, next.has_wrapped, waiting.position + 1
          FROM waiting
         CROSS JOIN LATERAL (
                (SELECT account_id, waiting.has_wrapped FROM jobs
                  WHERE state = 'queued' AND tier = waiting.tier AND lane = 'bulk'
                    AND dispatch_number IS NULL {_IS_DUE}
                    AND account_id > waiting.account_id
                    AND (NOT waiting.has_wrapped OR account_id <= :after_account)
                  ORDER BY account_id LIMIT 1)
                UNION ALL
                (SELECT account_id, true FROM jobs
                  WHERE NOT waiting.has_wrapped AND state = 'queued' AND tier = waiting.tier
                    AND lane = 'bulk' AND dispatch_number IS NULL {_IS_DUE}
                    AND account_id <= :after_account
                  ORDER BY account_id LIMIT 1)
                LIMIT 1) AS next
         WHERE waiting.position < :limit
    ), share AS (
        SELECT ceil(:limit / greatest(count(*), 1)::float8)::int AS num_jobs FROM waiting
    )
    SELECT oldest.id
      FROM waiting CROSS JOIN share
     CROSS JOIN LATERAL (
            SELECT id, row_number() OVER (ORDER BY created_at, id) AS turn
              FROM (SELECT id, created_at FROM jobs
                     WHERE state = 'queued' AND tier = waiting.tier AND lane = 'bulk'
                       AND dispatch_number IS NULL AND account_id = waiting.account_id
                       {_IS_DUE}
                     ORDER BY created_at, id LIMIT share.num_jobs FOR UPDATE SKIP LOCKED) AS locked
           ) AS oldest
     ORDER BY oldest.turn, waiting.position LIMIT :limit"""
"""The ids of up to `limit` due bulk jobs of those of `tiers` that are not paused, locked.

The accounts come from a loose index scan (one probe per account), which begins behind `after_account` and
goes on from the start; at most one account for each job that is wanted. Each gives an equal share of jobs,
and rows that another transaction holds are passed over.
"""
