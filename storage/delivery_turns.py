"""Which webhook delivery is sent next: accounts in turn, and receivers in turn within an account.

Owns the statements that choose due deliveries, to dispatch them or to put one under a lease. It executes
nothing, and does not know how many an account may have in flight, nor what becomes of an attempt.
"""

from sqlalchemy import text

from storage.receivers import IS_HELD_BACK

MAX_RECEIVERS = 100

# Stable within a statement, unlike `clock_timestamp()`, so that an index can be used.
_DUE = "state = 'pending' AND held_at IS NULL AND next_attempt_at <= statement_timestamp()"
_SENDING = "lease_token IS NOT NULL AND next_attempt_at > statement_timestamp()"
_DISPATCHED = "dispatched_at > statement_timestamp() - make_interval(secs => :redispatch_seconds)"
# Every account with pending deliveries that are not held, by a loose index scan (one probe per account).
_WAITING = """waiting AS (
        (SELECT account_id FROM webhook_deliveries WHERE state = 'pending' AND held_at IS NULL
          ORDER BY account_id LIMIT 1)
        UNION ALL
        SELECT (SELECT next.account_id FROM webhook_deliveries AS next
                 WHERE next.state = 'pending' AND next.held_at IS NULL
                   AND next.account_id > waiting.account_id
                 ORDER BY next.account_id LIMIT 1)
          FROM waiting WHERE waiting.account_id IS NOT NULL)"""
_NUM_SENDING = f"""SELECT count(*) FROM webhook_deliveries AS other
          WHERE other.account_id = {{account}} AND other.state = 'pending'
            AND (lease_token IS NOT NULL OR dispatched_at IS NOT NULL) AND {_SENDING}"""
# What a crash of Postgres takes back is done again: a delivery is made at least once. Waiting for the disk
# would be most of the time from the end of a job to its webhook.
_NOT_DURABLE = "SELECT set_config('synchronous_commit', 'off', true)"
DISPATCH = text(
    f"""
    {_NOT_DURABLE};
    WITH RECURSIVE {_WAITING}, picked AS (
        SELECT due.id FROM waiting
         CROSS JOIN LATERAL (
               SELECT count(*) AS num FROM webhook_deliveries
                WHERE account_id = waiting.account_id AND state = 'pending'
                  AND (lease_token IS NOT NULL OR dispatched_at IS NOT NULL)
                  AND (({_SENDING}) OR ({_DISPATCHED}))) AS under_way
         CROSS JOIN LATERAL (
               SELECT id, row_number() OVER (ORDER BY next_attempt_at, id) AS turn
                 FROM (SELECT id, next_attempt_at FROM webhook_deliveries
                        WHERE account_id = waiting.account_id AND {_DUE} AND ({_DISPATCHED}) IS NOT TRUE
                        ORDER BY next_attempt_at, id LIMIT :max_per_account) AS oldest) AS due
         WHERE due.turn <= :max_per_account - under_way.num
         ORDER BY due.turn LIMIT :limit)
    UPDATE webhook_deliveries SET dispatched_at = clock_timestamp()
      FROM picked
     WHERE webhook_deliveries.id = picked.id AND {_DUE} AND ({_DISPATCHED}) IS NOT TRUE
    RETURNING webhook_deliveries.id
    """
)
NEXT_ACCOUNT = text(
    f"""
    WITH RECURSIVE {_WAITING}
    SELECT waiting.account_id FROM waiting
     CROSS JOIN LATERAL (SELECT next_attempt_at FROM webhook_deliveries
                          WHERE account_id = waiting.account_id AND {_DUE}
                          ORDER BY next_attempt_at LIMIT 1) AS oldest
     CROSS JOIN LATERAL ({_NUM_SENDING.format(account="waiting.account_id")}) AS sending (num)
     WHERE sending.num < :max_per_account
     ORDER BY sending.num, oldest.next_attempt_at LIMIT 1
    """
)
_TAKEN = f"""picked AS (
        SELECT id, account_id FROM webhook_deliveries WHERE id = (SELECT id FROM best) AND {_DUE} FOR UPDATE
    ), claimed AS (
        UPDATE webhook_deliveries SET lease_token = gen_random_uuid(), num_attempts = num_attempts + 1,
               dispatched_at = NULL,
               next_attempt_at = clock_timestamp() + make_interval(secs => :lease_seconds)
          FROM picked
         WHERE webhook_deliveries.id = picked.id
           AND ({_NUM_SENDING.format(account="picked.account_id")}) < :max_per_account
        RETURNING webhook_deliveries.id, webhook_deliveries.account_id, job_id, batch_id, event, url,
                  num_attempts, num_failures, lease_token, receiver
    ), probed AS (
        UPDATE webhook_receivers
           SET next_probe_at = clock_timestamp() + make_interval(secs => :lease_seconds)
          FROM claimed
         WHERE webhook_receivers.account_id = claimed.account_id
           AND webhook_receivers.receiver = claimed.receiver AND webhook_receivers.state = 'failing'
        RETURNING webhook_receivers.id
    ), lost AS (
        UPDATE webhook_attempts SET error_code = 'sender_lost' FROM claimed
         WHERE delivery_id = claimed.id AND milliseconds IS NULL AND webhook_attempts.error_code IS NULL
    ), begun AS (
        INSERT INTO webhook_attempts (delivery_id, number) SELECT id, num_attempts FROM claimed
    )
    SELECT claimed.*, accounts.webhook_secret,
           CASE WHEN previous_webhook_secret_until > statement_timestamp() THEN previous_webhook_secret END
               AS previous_webhook_secret,
           EXISTS (SELECT FROM probed) AS is_probe,
           (SELECT traceparent FROM jobs WHERE jobs.id = claimed.job_id) AS traceparent
      FROM claimed JOIN accounts ON accounts.id = claimed.account_id"""
"""The last CTEs of a claim, from the delivery `best` to the row of a `DeliveryClaim`."""
# Within an account the receiver with the fewest attempts in flight comes first, so that one that hangs delays
# the others by one attempt and not by its whole queue. Receivers come from a loose index scan too, at most a
# hundred of them plus the longest waiting one: an account may use a new host in every job.
#
# The first statement serializes the claims of one account, so that each counts the attempts begun before it.
# A lock on the account's row would need the right to update it; the first number is the kind of the lock.
# Both statements are one transaction in one round trip; each sees what was committed before it began.
CLAIM = text(
    f"""
    {_NOT_DURABLE}, pg_advisory_xact_lock(1, hashtext(:account_id));
    WITH RECURSIVE receivers AS (
        (SELECT receiver FROM webhook_deliveries
          WHERE account_id = :account_id AND state = 'pending' AND held_at IS NULL
          ORDER BY receiver LIMIT 1)
        UNION ALL
        SELECT (SELECT next.receiver FROM webhook_deliveries AS next
                 WHERE next.account_id = :account_id AND next.state = 'pending' AND next.held_at IS NULL
                   AND next.receiver > receivers.receiver
                 ORDER BY next.receiver LIMIT 1)
          FROM receivers WHERE receivers.receiver IS NOT NULL
    ), looked_at AS (
        (SELECT receiver FROM receivers WHERE receiver IS NOT NULL LIMIT {MAX_RECEIVERS})
        UNION
        (SELECT receiver FROM webhook_deliveries WHERE account_id = :account_id AND {_DUE}
          ORDER BY next_attempt_at, id LIMIT 1)
    ), sending AS (
        SELECT receiver, count(*) AS num FROM webhook_deliveries
         WHERE account_id = :account_id AND state = 'pending'
           AND (lease_token IS NOT NULL OR dispatched_at IS NOT NULL) AND {_SENDING}
         GROUP BY receiver
    ), best AS (
        SELECT oldest.id FROM looked_at
         CROSS JOIN LATERAL (SELECT id, next_attempt_at FROM webhook_deliveries
                              WHERE account_id = :account_id AND receiver = looked_at.receiver AND {_DUE}
                              ORDER BY next_attempt_at, id LIMIT 1) AS oldest
          LEFT JOIN sending USING (receiver)
         WHERE NOT EXISTS (SELECT FROM webhook_receivers
                            WHERE account_id = :account_id AND receiver = looked_at.receiver
                              AND {IS_HELD_BACK})
         ORDER BY coalesce(sending.num, 0), oldest.next_attempt_at, oldest.id LIMIT 1
    ), {_TAKEN}
    """
)
CLAIM_THIS = text(
    f"""
    {_NOT_DURABLE}, pg_advisory_xact_lock(1, hashtext(account_id))
      FROM webhook_deliveries WHERE id = :id AND {_DUE};
    WITH best AS (
        SELECT id FROM webhook_deliveries AS this
         WHERE id = :id AND {_DUE}
           AND NOT EXISTS (SELECT FROM webhook_receivers
                            WHERE account_id = this.account_id AND receiver = this.receiver
                              AND {IS_HELD_BACK})
           AND NOT EXISTS (SELECT FROM webhook_deliveries AS other
                            WHERE other.account_id = this.account_id AND other.receiver = this.receiver
                              AND other.state = 'pending'
                              AND (lease_token IS NOT NULL OR dispatched_at IS NOT NULL) AND {_SENDING})
    ), {_TAKEN}
    """
)
