"""The outbox: webhook deliveries that are due, their claims and their attempts.

A delivery is claimed under a lease, and every later write checks its token: another sender takes over from
one that died, and a late sender writes nothing. It does not know how deliveries are sent.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select, text

from storage.database import Database
from storage.delivery_turns import CLAIM, CLAIM_THIS, DISPATCH, NEXT_ACCOUNT
from storage.errors import DeliveryIsPending, NotFound
from storage.notifications import WEBHOOKS_DUE
from storage.receivers import (
    DEFAULT_BACKOFF,
    NOT_THE_RECEIVERS,
    Backoff,
    hold,
    note_failure,
    note_success,
    resume_receiver,
)

CLAIM_TRIES = 3
MAX_HOLDS = 20


@dataclass(frozen=True)
class DeliveryClaim:
    """A delivery that a sender has claimed, with everything needed to send it."""

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
    traceparent: str | None = None  # the span of the request that submitted its job


@dataclass(frozen=True)
class Recorded:
    """The delivery's state after an attempt, and the state of its receiver if the receiver has a row."""

    state: str
    receiver_state: str | None


@dataclass(frozen=True)
class AttemptRecord:
    """The result of one attempt; without an `error_code` it was delivered."""

    milliseconds: int
    response_status: int | None = None
    error_code: str | None = None
    error_detail: str | None = None
    answer: str | None = None


def complete_batches(connection: Connection, batch_ids: Collection[str]) -> None:
    """Insert `batch.completed` for the batches among these that have a webhook and no open jobs.

    Call it in the transaction that ends a job, after that. If two last jobs end at once, the lock on the
    batch serializes them and the second statement sees the first one's commit: one of the two finds the batch
    complete, and the outbox gets the event once.
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
        RETURNING event
        """
    )
    if connection.execute(insert, {"ids": locked}).all():
        connection.execute(select(func.pg_notify(WEBHOOKS_DUE, "")))


def dispatch(db: Database, *, limit: int, max_per_account: int, redispatch_seconds: float) -> list[str]:
    """Record a dispatch of up to `limit` due deliveries, accounts in turn; returns their ids.

    An account gets no more than it may have in flight, so that a receiver that is down cannot fill a queue.
    """
    parameters = {
        "limit": limit,
        "max_per_account": max_per_account,
        "redispatch_seconds": redispatch_seconds,
    }
    return [row.id for row in db.execute(DISPATCH, parameters)]


def undispatch(db: Database, delivery_ids: Sequence[str]) -> None:
    """Undo dispatches that could not be published: their deliveries may be dispatched again at once."""
    statement = text(
        "UPDATE webhook_deliveries SET dispatched_at = NULL"
        " WHERE id = ANY(:ids) AND state = 'pending' RETURNING id"
    )
    db.run(lambda connection: connection.execute(statement, {"ids": list(delivery_ids)}).all())


def claim(db: Database, *, max_per_account: int, lease_seconds: float) -> DeliveryClaim | None:
    """Claim the next due delivery under a lease; `None` if there is none.

    Accounts with the fewest attempts in flight come first, and likewise receivers within an account. An
    account has at most `max_per_account` in flight over all senders. So a receiver that hangs delays no other
    account, and the other receivers of its account by one attempt at most. A failing receiver gets one probe
    at a time; its other due deliveries are held.
    """
    parameters: dict[str, object] = {"max_per_account": max_per_account, "lease_seconds": lease_seconds}
    num_tries = num_holds = 0
    while num_tries < CLAIM_TRIES and num_holds < MAX_HOLDS:
        found = db.execute(NEXT_ACCOUNT, parameters)
        if not found:
            return None
        account_id = found[0].account_id
        for row in db.execute(CLAIM, {**parameters, "account_id": account_id}):
            return _claim_of(row)
        # Its due deliveries may have to be held, or another sender claimed the last one.
        if hold(db, account_id):
            num_holds += 1
        else:
            num_tries += 1
    return None


def claim_this(
    db: Database, delivery_id: str, *, max_per_account: int, lease_seconds: float
) -> DeliveryClaim | None:
    """Claim this delivery if `claim` could choose it and its receiver has no attempt in flight.

    It saves most of the time that choosing takes. The dispatch has chosen between accounts already, and
    receivers within an account take turns where there is a choice.
    """
    parameters = {"id": delivery_id, "max_per_account": max_per_account, "lease_seconds": lease_seconds}
    return next(map(_claim_of, db.execute(CLAIM_THIS, parameters)), None)


def _claim_of(row: Row[Any]) -> DeliveryClaim:
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
    """End an attempt as `delivered`, as `pending` with a retry in `retry_seconds`, or else as `failed`.

    The same transaction updates the receiver's circuit breaker by `backoff` and `patience_seconds`. Returns
    `None` if the lease was lost to another sender.
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
    """Send a delivery again on a new schedule, and probe its receiver at once if that is paused or failing.

    Raises `NotFound`, or `DeliveryIsPending` if it has not ended.
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
