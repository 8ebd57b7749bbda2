"""The outbox: which webhook deliveries are due, who sends one now, and what came of it.

A delivery is claimed under a lease, and every write after that shows its token: a sender that died is
followed by another, a late one writes nothing. It does not know how anything is sent.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from sqlalchemy import Connection, text

from storage.database import Database
from storage.errors import DeliveryIsPending, NotFound
from storage.receivers import (
    DEFAULT_BACKOFF,
    IS_HELD_BACK,
    NOT_THE_RECEIVERS,
    Backoff,
    hold,
    note_failure,
    note_success,
    resume_receiver,
)

CLAIM_TRIES = 3
MAX_HOLDS = 20
MAX_RECEIVERS = 100


@dataclass(frozen=True)
class DeliveryClaim:
    """A delivery that is now this sender's, with what it needs to send it."""

    id: str
    account_id: str
    job_id: str | None
    batch_id: str | None
    event: str
    url: str
    webhook_secret: str
    previous_webhook_secret: str | None
    receiver: str
    num_attempts: int
    num_failures: int
    lease_token: str
    is_probe: bool


@dataclass(frozen=True)
class Recorded:
    """The delivery's state after an attempt, and its receiver's where that is known for its failures."""

    state: str
    receiver_state: str | None


@dataclass(frozen=True)
class AttemptRecord:
    """What one attempt came to. Without an `error_code` the receiver has it."""

    milliseconds: int
    response_status: int | None = None
    error_code: str | None = None
    error_detail: str | None = None
    answer: str | None = None


def complete_batches(connection: Connection, batch_ids: Collection[str]) -> None:
    """Write `batch.completed` for those of these batches that ask for it and whose last job has ended.

    To be called in the transaction that ended a job, after it. The lock on the batch makes two last jobs
    take turns, and the second statement sees what the first of them committed: one of the two finds the
    batch complete, and the outbox holds an event of a batch once.
    """
    if not batch_ids:
        return
    lock = text(
        """SELECT id FROM batches WHERE id = ANY(:ids) AND webhook_url IS NOT NULL
            ORDER BY id FOR NO KEY UPDATE"""
    )
    locked = list(connection.execute(lock, {"ids": sorted(batch_ids)}).scalars())
    if not locked:
        return
    insert = text(
        """
        INSERT INTO webhook_deliveries (id, account_id, batch_id, event, url, next_attempt_at)
        SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), account_id, id, 'batch.completed',
               webhook_url, clock_timestamp()
          FROM batches
         WHERE id = ANY(:ids) AND NOT EXISTS (
               SELECT FROM jobs WHERE batch_id = batches.id AND state IN ('queued', 'running'))
        ON CONFLICT (batch_id, event) DO NOTHING
        """
    )
    connection.execute(insert, {"ids": locked})


def dispatch(db: Database, *, limit: int, max_per_account: int, redispatch_seconds: float) -> list[str]:
    """Note that a bell is rung for due deliveries, accounts in turn; the ids of up to `limit`.

    Never more for an account than it may have under way: a receiver that is down fills no queue.
    """
    statement = text(
        f"""
        WITH RECURSIVE {WAITING}, picked AS (
            SELECT due.id FROM waiting
             CROSS JOIN LATERAL (
                   SELECT count(*) AS num FROM webhook_deliveries
                    WHERE account_id = waiting.account_id AND state = 'pending'
                      AND (lease_token IS NOT NULL OR dispatched_at IS NOT NULL)
                      AND (({_SENDING}) OR ({_DISPATCHED}))) AS under_way
             CROSS JOIN LATERAL (
                   SELECT id, row_number() OVER (ORDER BY next_attempt_at, id) AS turn
                     FROM (SELECT id, next_attempt_at FROM webhook_deliveries
                            WHERE account_id = waiting.account_id AND {DUE} AND ({_DISPATCHED}) IS NOT TRUE
                            ORDER BY next_attempt_at, id LIMIT :max_per_account) AS oldest) AS due
             WHERE due.turn <= :max_per_account - under_way.num
             ORDER BY due.turn LIMIT :limit)
        UPDATE webhook_deliveries SET dispatched_at = clock_timestamp()
          FROM picked
         WHERE webhook_deliveries.id = picked.id AND {DUE} AND ({_DISPATCHED}) IS NOT TRUE
        RETURNING webhook_deliveries.id
        """
    )
    parameters = {
        "limit": limit,
        "max_per_account": max_per_account,
        "redispatch_seconds": redispatch_seconds,
    }
    return list(db.run(lambda connection: connection.execute(statement, parameters).scalars().all()))


def put_back(db: Database, delivery_ids: Sequence[str]) -> None:
    """These bells could not be published: their deliveries may be rung again at once."""
    statement = text(
        "UPDATE webhook_deliveries SET dispatched_at = NULL"
        " WHERE id = ANY(:ids) AND state = 'pending' RETURNING id"
    )
    db.run(lambda connection: connection.execute(statement, {"ids": list(delivery_ids)}).all())


def claim(db: Database, *, max_per_account: int, lease_seconds: float) -> DeliveryClaim | None:
    """The delivery that is most due, under a lease, or nothing.

    Accounts with the fewest attempts under way come first, and within one its receivers likewise; none has
    more than `max_per_account`, over all senders: a receiver that hangs holds no other account up, and its
    own one's other receivers for one attempt at most. A receiver that fails gets one probe at a time; what
    else is due for it is held.
    """
    parameters: dict[str, object] = {"max_per_account": max_per_account, "lease_seconds": lease_seconds}
    num_tries = num_holds = 0
    while num_tries < CLAIM_TRIES and num_holds < MAX_HOLDS:
        with db.transaction() as connection:
            account_id = connection.execute(_NEXT_ACCOUNT, parameters).scalar_one_or_none()
        if account_id is None:
            return None
        claimed = db.run(partial(_claim_of, parameters={**parameters, "account_id": account_id}))
        if claimed is not None:
            return claimed
        # Its due deliveries may be held from now on; or another sender took the last one.
        if hold(db, account_id):
            num_holds += 1
        else:
            num_tries += 1
    return None


def _claim_of(connection: Connection, parameters: dict[str, object]) -> DeliveryClaim | None:
    # Claims of one account take turns, so that each counts what the one before it has begun.
    connection.execute(_TAKE_TURN, parameters)
    row = connection.execute(_CLAIM, parameters).one_or_none()
    if row is None:
        return None
    values = {name: row._mapping[name] for name in DeliveryClaim.__dataclass_fields__}
    return DeliveryClaim(**{**values, "lease_token": str(row.lease_token)})


def record(
    db: Database,
    claimed: DeliveryClaim,
    attempt: AttemptRecord,
    *,
    retry_seconds: float | None,
    backoff: Backoff = DEFAULT_BACKOFF,
    patience_seconds: float = 0,
) -> Recorded | None:
    """End an attempt: `delivered`, `pending` until the next one in `retry_seconds`, or `failed` without.

    Its receiver's circuit moves in the same transaction, by `backoff` and not before `patience_seconds`
    are over. Nothing when the lease was lost: another sender has it.
    """
    state = "delivered" if attempt.error_code is None else "failed" if retry_seconds is None else "pending"
    statement = text(
        """
        WITH ended AS (
            UPDATE webhook_deliveries SET state = :state, lease_token = NULL, dispatched_at = NULL,
                   num_failures = num_failures + CASE WHEN :state = 'delivered' THEN 0 ELSE 1 END,
                   next_attempt_at = CASE WHEN :state = 'pending'
                       THEN clock_timestamp() + make_interval(secs => :retry_seconds) END,
                   finished_at = CASE WHEN :state <> 'pending' THEN clock_timestamp() END,
                   error_code = CASE WHEN :state = 'failed' THEN :error_code END
             WHERE id = :id AND state = 'pending' AND lease_token = CAST(:token AS uuid)
            RETURNING id
        )
        UPDATE webhook_attempts SET milliseconds = :milliseconds, response_status = :response_status,
               error_code = :error_code, error_detail = :error_detail, answer = :answer
          FROM ended WHERE delivery_id = ended.id AND number = :number
        RETURNING delivery_id
        """
    )
    parameters = {
        **asdict(attempt),
        "id": claimed.id,
        "token": claimed.lease_token,
        "number": claimed.num_attempts,
        "state": state,
        "retry_seconds": retry_seconds or 0.0,
    }

    def work(connection: Connection) -> Recorded | None:
        if not connection.execute(statement, parameters).all():
            return None
        return Recorded(state, _note(connection, claimed, attempt, backoff, patience_seconds))

    return db.run(work)


def _note(
    connection: Connection,
    claimed: DeliveryClaim,
    attempt: AttemptRecord,
    backoff: Backoff,
    patience_seconds: float,
) -> str | None:
    if attempt.error_code is None:
        return note_success(connection, claimed.account_id, claimed.receiver)
    if attempt.error_code in NOT_THE_RECEIVERS:
        return None
    return note_failure(
        connection,
        claimed.account_id,
        claimed.receiver,
        error_code=attempt.error_code,
        error_detail=attempt.error_detail,
        is_probe=claimed.is_probe,
        backoff=backoff,
        patience_seconds=patience_seconds,
    )


def replay(db: Database, account_id: str, delivery_id: str) -> None:
    """Send it again, on a fresh schedule, and probe its receiver at once if that is paused or fails.

    Raises `NotFound`, or `DeliveryIsPending` when it is under way.
    """
    statement = text(
        """UPDATE webhook_deliveries SET state = 'pending', num_failures = 0, finished_at = NULL,
                  error_code = NULL, next_attempt_at = clock_timestamp()
            WHERE id = :id AND account_id = :account_id AND state <> 'pending' RETURNING receiver"""
    )
    there = text("SELECT FROM webhook_deliveries WHERE id = :id AND account_id = :account_id")
    parameters = {"id": delivery_id, "account_id": account_id}

    def work(connection: Connection) -> bool:
        receiver = connection.execute(statement, parameters).scalar_one_or_none()
        if receiver is not None:
            resume_receiver(connection, account_id, receiver)
            return True
        if connection.execute(there, parameters).one_or_none() is None:
            raise NotFound(f"no webhook delivery {delivery_id!r}")
        return False

    if not db.run(work, account_id=account_id):
        raise DeliveryIsPending(f"webhook delivery {delivery_id!r} is pending: it will be sent anyway")


# Stable within a statement, unlike `clock_timestamp()`, so that an index can be asked.
DUE = "state = 'pending' AND held_at IS NULL AND next_attempt_at <= statement_timestamp()"
_SENDING = "lease_token IS NOT NULL AND next_attempt_at > statement_timestamp()"
_DISPATCHED = "dispatched_at > statement_timestamp() - make_interval(secs => :redispatch_seconds)"
# Every account with something pending that is not held, found by leaps over the index, not through its rows.
WAITING = """waiting AS (
        (SELECT account_id FROM webhook_deliveries WHERE state = 'pending' AND held_at IS NULL
          ORDER BY account_id LIMIT 1)
        UNION ALL
        SELECT (SELECT next.account_id FROM webhook_deliveries AS next
                 WHERE next.state = 'pending' AND next.held_at IS NULL
                   AND next.account_id > waiting.account_id
                 ORDER BY next.account_id LIMIT 1)
          FROM waiting WHERE waiting.account_id IS NOT NULL)"""
NUM_SENDING = f"""SELECT count(*) FROM webhook_deliveries AS other
          WHERE other.account_id = {{account}} AND other.state = 'pending'
            AND (lease_token IS NOT NULL OR dispatched_at IS NOT NULL) AND {_SENDING}"""
# A lock on the account's row would ask for the right to change it. The first number says what is locked.
_TAKE_TURN = text("SELECT pg_advisory_xact_lock(1, hashtext(:account_id))")
_NEXT_ACCOUNT = text(
    f"""
    WITH RECURSIVE {WAITING}
    SELECT waiting.account_id FROM waiting
     CROSS JOIN LATERAL (SELECT next_attempt_at FROM webhook_deliveries
                          WHERE account_id = waiting.account_id AND {DUE}
                          ORDER BY next_attempt_at LIMIT 1) AS oldest
     CROSS JOIN LATERAL ({NUM_SENDING.format(account="waiting.account_id")}) AS sending (num)
     WHERE sending.num < :max_per_account
     ORDER BY sending.num, oldest.next_attempt_at LIMIT 1
    """
)
# Within its account the receiver with the fewest attempts under way comes first, so that one that hangs
# costs the others the end of an attempt and not that of its queue. Receivers are found by leaps, too, and
# no more than a hundred and the longest waiting one: an account may name a new host in every job.
_CLAIM = text(
    f"""
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
        (SELECT receiver FROM webhook_deliveries WHERE account_id = :account_id AND {DUE}
          ORDER BY next_attempt_at, id LIMIT 1)
    ), sending AS (
        SELECT receiver, count(*) AS num FROM webhook_deliveries
         WHERE account_id = :account_id AND state = 'pending'
           AND (lease_token IS NOT NULL OR dispatched_at IS NOT NULL) AND {_SENDING}
         GROUP BY receiver
    ), best AS (
        SELECT oldest.id FROM looked_at
         CROSS JOIN LATERAL (SELECT id, next_attempt_at FROM webhook_deliveries
                              WHERE account_id = :account_id AND receiver = looked_at.receiver AND {DUE}
                              ORDER BY next_attempt_at, id LIMIT 1) AS oldest
          LEFT JOIN sending USING (receiver)
         WHERE NOT EXISTS (SELECT FROM webhook_receivers
                            WHERE account_id = :account_id AND receiver = looked_at.receiver
                              AND {IS_HELD_BACK})
         ORDER BY coalesce(sending.num, 0), oldest.next_attempt_at, oldest.id LIMIT 1
    ), picked AS (
        SELECT id FROM webhook_deliveries WHERE id = (SELECT id FROM best) AND {DUE} FOR UPDATE
    ), claimed AS (
        UPDATE webhook_deliveries SET lease_token = gen_random_uuid(), num_attempts = num_attempts + 1,
               dispatched_at = NULL,
               next_attempt_at = clock_timestamp() + make_interval(secs => :lease_seconds)
          FROM picked
         WHERE webhook_deliveries.id = picked.id
           AND ({NUM_SENDING.format(account=":account_id")}) < :max_per_account
        RETURNING webhook_deliveries.id, account_id, job_id, batch_id, event, url, num_attempts,
                  num_failures, lease_token, receiver
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
           EXISTS (SELECT FROM probed) AS is_probe
      FROM claimed JOIN accounts ON accounts.id = claimed.account_id
    """
)
