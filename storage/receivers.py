"""The circuit breaker of webhook receivers: after some failures in a row one probe at a time, later a pause.

The deliveries of a failing receiver are held: they are not due and cost nothing, however many there are. A
receiver has a row only while it fails or its deliveries are being released (docs/adr/0012). This module does
not know how deliveries are sent.
"""

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, select, text

from storage.database import Database
from storage.errors import NotFound
from storage.tables import webhook_receivers

FAILURES_BEFORE_HOLD = 5
"""Failures in a row. A receiver that answers now and then is never held."""
NOT_THE_RECEIVERS = frozenset({"gone", "internal_error"})
"""Error codes that do not count as the receiver's failure: it declined permanently, or we caused them."""
HELD_AT_ONCE = 5000
"""Rows are selected by `id = ANY(ARRAY(...))`, which uses the primary key whatever the statistics say."""
RECEIVERS_AT_ONCE = 200
MAX_LISTED = 500

IS_HELD_BACK = """(webhook_receivers.state = 'paused'
    OR (webhook_receivers.state = 'failing' AND webhook_receivers.next_probe_at > statement_timestamp()))"""
_DUE = "state = 'pending' AND held_at IS NULL AND next_attempt_at <= statement_timestamp()"


@dataclass(frozen=True)
class Backoff:
    """The times (seconds) until a failing receiver is probed, and until it is paused."""

    first_probe_seconds: float = 5
    max_probe_seconds: float = 1800
    pause_seconds: float = 5 * 86_400


DEFAULT_BACKOFF = Backoff()


@dataclass(frozen=True)
class Receiver:
    """A failing, paused or recovering receiver. `failing_since` is its first failure in a row."""

    id: str
    receiver: str
    state: str
    num_failures: int
    failing_since: datetime | None
    next_probe_at: datetime | None
    paused_at: datetime | None
    last_failed_at: datetime
    last_error_code: str
    last_error_detail: str | None


def note_success(connection: Connection, account_id: str, receiver: str) -> str | None:
    """Record a successful attempt, after which held deliveries may be sent; returns a changed state."""
    statement = text(
        """
        UPDATE webhook_receivers SET state = 'recovering', num_failures = 0, num_probes = 0,
               failing_since = NULL, next_probe_at = NULL, paused_at = NULL
         WHERE account_id = :account_id AND receiver = :receiver
           AND (state <> 'recovering' OR num_failures > 0)
        RETURNING state
        """
    )
    parameters = {"account_id": account_id, "receiver": receiver}
    state: str | None = connection.execute(statement, parameters).scalar_one_or_none()
    return state


def note_failure(
    connection: Connection,
    account_id: str,
    receiver: str,
    *,
    error_code: str,
    error_detail: str | None,
    is_probe: bool,
    backoff: Backoff,
    patience_seconds: float = 0,
) -> str:
    """Record a failed attempt; returns the receiver's new state.

    The next probe waits at least the `patience_seconds` that the receiver asked for.
    """
    parameters = {
        **asdict(backoff),
        "account_id": account_id,
        "receiver": receiver,
        "error_code": error_code,
        "error_detail": error_detail,
        "is_probe": is_probe,
        "patience_seconds": min(patience_seconds, backoff.max_probe_seconds),
        "failures_before_hold": FAILURES_BEFORE_HOLD,
    }
    state: str = connection.execute(_NOTE_FAILURE, parameters).scalar_one()
    return state


def hold(db: Database, account_id: str) -> int:
    """Hold due deliveries of an account whose receivers are held back; returns how many.

    It reads a bounded number of rows at the head of the account's queue. The lock keeps the row of a receiver
    from being deleted before its waiting deliveries are seen.
    """
    lock = text(
        f"""SELECT receiver FROM webhook_receivers
             WHERE account_id = :account_id AND {IS_HELD_BACK} AND receiver IN (
                   SELECT receiver FROM (
                          SELECT receiver FROM webhook_deliveries WHERE account_id = :account_id AND {_DUE}
                           ORDER BY next_attempt_at, id LIMIT {HELD_AT_ONCE}) AS head)
               FOR SHARE"""
    )
    statement = text(
        f"""UPDATE webhook_deliveries SET held_at = clock_timestamp(), lease_token = NULL,
               dispatched_at = NULL
             WHERE id = ANY(ARRAY(
                   SELECT id FROM webhook_deliveries
                    WHERE account_id = :account_id AND receiver = ANY(:receivers) AND {_DUE}
                    ORDER BY next_attempt_at, id LIMIT {HELD_AT_ONCE} FOR UPDATE SKIP LOCKED))"""
    )

    def work(connection: Connection) -> int:
        parameters: dict[str, object] = {"account_id": account_id}
        parameters["receivers"] = list(connection.execute(lock, parameters).scalars())
        return connection.execute(statement, parameters).rowcount if parameters["receivers"] else 0

    return db.run(work)


def wake(db: Database) -> int:
    """Release one held delivery of each receiver whose probe is due; returns how many.

    Probes alternate between the oldest and the newest delivery, so that neither a delivery that the receiver
    always rejects nor a URL that it no longer serves blocks the others.
    """
    held = """SELECT id FROM webhook_deliveries
               WHERE account_id = due.account_id AND receiver = due.receiver AND held_at IS NOT NULL
               ORDER BY"""
    statement = text(
        f"""
        WITH due AS (
            SELECT id, account_id, receiver, num_probes FROM webhook_receivers
             WHERE state = 'failing' AND next_probe_at <= statement_timestamp()
             ORDER BY next_probe_at LIMIT {RECEIVERS_AT_ONCE} FOR UPDATE SKIP LOCKED
        ), idle AS (
            SELECT due.id AS receiver_id,
                   CASE WHEN num_probes % 2 = 0 THEN ({held} held_at, id LIMIT 1)
                        ELSE ({held} held_at DESC, id DESC LIMIT 1) END AS delivery_id
              FROM due
             WHERE NOT EXISTS (SELECT FROM webhook_deliveries
                                WHERE account_id = due.account_id AND receiver = due.receiver AND {_DUE})
        ), unasked AS (
            UPDATE webhook_receivers SET next_probe_at = NULL FROM idle
             WHERE webhook_receivers.id = receiver_id AND delivery_id IS NULL
        )
        UPDATE webhook_deliveries SET held_at = NULL, next_attempt_at = statement_timestamp()
         WHERE id = ANY(ARRAY(SELECT delivery_id FROM idle)) AND held_at IS NOT NULL
        """
    )
    return db.run(lambda connection: connection.execute(statement).rowcount)


def release(db: Database) -> int:
    """Release a bounded number of held deliveries of recovering receivers; returns how many."""
    held = "account_id = recovering.account_id AND receiver = recovering.receiver AND held_at IS NOT NULL"
    statement = text(
        f"""
        WITH recovering AS (
            SELECT id, account_id, receiver, num_failures FROM webhook_receivers WHERE state = 'recovering'
             ORDER BY id LIMIT {RECEIVERS_AT_ONCE} FOR UPDATE SKIP LOCKED
        ), picked AS (
            SELECT held.id FROM recovering CROSS JOIN LATERAL (
                   SELECT id FROM webhook_deliveries WHERE {held}
                    ORDER BY held_at, id LIMIT {HELD_AT_ONCE}) AS held
             LIMIT {HELD_AT_ONCE}
        ), settled AS (
            SELECT id, num_failures FROM recovering
             WHERE NOT EXISTS (SELECT FROM webhook_deliveries WHERE {held})
        ), well AS (
            DELETE FROM webhook_receivers USING settled
             WHERE webhook_receivers.id = settled.id AND settled.num_failures = 0
        ), doubted AS (
            UPDATE webhook_receivers SET state = 'doubted' FROM settled
             WHERE webhook_receivers.id = settled.id AND settled.num_failures > 0
        )
        UPDATE webhook_deliveries SET held_at = NULL, next_attempt_at = statement_timestamp()
         WHERE id = ANY(ARRAY(SELECT id FROM picked)) AND held_at IS NOT NULL
        """
    )
    return db.run(lambda connection: connection.execute(statement).rowcount)


def fail_held(db: Database, *, keep_seconds: float) -> list[str]:
    """Fail a bounded number of deliveries that paused receivers held for `keep_seconds`; returns their ids.

    Their error code is `receiver_paused`; they can be replayed like any failed delivery.
    """
    statement = text(
        f"""
        WITH paused AS (
            SELECT account_id, receiver FROM webhook_receivers
             WHERE state = 'paused'
               AND paused_at < statement_timestamp() - make_interval(secs => :keep_seconds)
             ORDER BY paused_at LIMIT {RECEIVERS_AT_ONCE} FOR SHARE SKIP LOCKED
        ), picked AS (
            SELECT held.id FROM paused CROSS JOIN LATERAL (
                   SELECT id FROM webhook_deliveries
                    WHERE account_id = paused.account_id AND receiver = paused.receiver
                      AND held_at < statement_timestamp() - make_interval(secs => :keep_seconds)
                    ORDER BY held_at, id LIMIT {HELD_AT_ONCE}) AS held
             LIMIT {HELD_AT_ONCE}
        )
        UPDATE webhook_deliveries SET state = 'failed', held_at = NULL, next_attempt_at = NULL,
               finished_at = clock_timestamp(), error_code = 'receiver_paused'
         WHERE id = ANY(ARRAY(SELECT id FROM picked)) AND held_at IS NOT NULL
        RETURNING webhook_deliveries.id
        """
    )
    parameters = {"keep_seconds": keep_seconds}
    return list(db.run(lambda connection: connection.execute(statement, parameters).scalars().all()))


def forget(db: Database, *, after_seconds: float) -> int:
    """Delete the rows of receivers that failed long ago and have no waiting deliveries; returns how many."""
    lock = text(
        f"""SELECT id FROM webhook_receivers
             WHERE last_failed_at < statement_timestamp() - make_interval(secs => :seconds)
             ORDER BY last_failed_at LIMIT {RECEIVERS_AT_ONCE} FOR UPDATE SKIP LOCKED"""
    )
    # A separate statement, so that it sees deliveries held before the lock was taken.
    delete = text(
        """DELETE FROM webhook_receivers WHERE id = ANY(:ids) AND NOT EXISTS (
               SELECT FROM webhook_deliveries WHERE state = 'pending' AND held_at IS NULL
                  AND account_id = webhook_receivers.account_id AND receiver = webhook_receivers.receiver)
              AND NOT EXISTS (SELECT FROM webhook_deliveries WHERE held_at IS NOT NULL
                  AND account_id = webhook_receivers.account_id AND receiver = webhook_receivers.receiver)"""
    )

    def work(connection: Connection) -> int:
        ids = list(connection.execute(lock, {"seconds": after_seconds}).scalars())
        return connection.execute(delete, {"ids": ids}).rowcount if ids else 0

    return db.run(work)


def resume(db: Database, account_id: str, receiver_id: str) -> None:
    """Probe a paused or failing receiver at once; raises `NotFound`."""
    with db.transaction(account_id=account_id) as connection:
        query = select(webhook_receivers.c.receiver).where(
            webhook_receivers.c.id == receiver_id, webhook_receivers.c.account_id == account_id
        )
        receiver = connection.execute(query).scalar_one_or_none()
        if receiver is None:
            raise NotFound(f"no webhook receiver {receiver_id!r}")
        resume_receiver(connection, account_id, receiver)


def resume_receiver(connection: Connection, account_id: str, receiver: str) -> None:
    """Probe a receiver by its name, if it has a row; the time until it is paused starts again."""
    statement = text(
        """
        UPDATE webhook_receivers SET state = 'failing', paused_at = NULL, num_probes = 0,
               failing_since = CASE WHEN state = 'paused' THEN clock_timestamp() ELSE failing_since END,
               next_probe_at = clock_timestamp()
         WHERE account_id = :account_id AND receiver = :receiver AND state IN ('failing', 'paused')
        """
    )
    connection.execute(statement, {"account_id": account_id, "receiver": receiver})


def list_receivers(db: Database, account_id: str) -> list[Receiver]:
    """The account's failing, paused and recovering receivers, the latest failure first."""
    columns = [webhook_receivers.c[name] for name in Receiver.__dataclass_fields__]
    query = (
        select(*columns)
        .where(webhook_receivers.c.account_id == account_id, webhook_receivers.c.state != "doubted")
        .order_by(webhook_receivers.c.last_failed_at.desc(), webhook_receivers.c.id)
        .limit(MAX_LISTED)
    )
    with db.transaction(account_id=account_id) as connection:
        return [Receiver(**row._mapping) for row in connection.execute(query)]


def num_receivers(db: Database, state: str) -> int:
    """The number of receivers in this state, over all accounts."""
    query = text("SELECT num_receivers FROM receivers_by_state WHERE state = :state")
    with db.transaction() as connection:
        return int(connection.execute(query, {"state": state}).scalar_one_or_none() or 0)


_PAUSES = """(known.state = 'failing' AND :is_probe
    AND known.failing_since <= clock_timestamp() - make_interval(secs => :pause_seconds))"""
_BEGINS_TO_HOLD = """(known.state IN ('doubted', 'recovering')
    AND known.num_failures + 1 >= :failures_before_hold)"""
# Attempts that were already running when the receiver began to be held change nothing.
_NOTE_FAILURE = text(
    f"""
    INSERT INTO webhook_receivers AS known
           (account_id, receiver, state, num_failures, failing_since, last_failed_at, last_error_code,
            last_error_detail)
    VALUES (:account_id, :receiver, 'doubted', 1, clock_timestamp(), clock_timestamp(), :error_code,
            :error_detail)
    ON CONFLICT (account_id, receiver) DO UPDATE SET
        state = CASE WHEN {_PAUSES} THEN 'paused' WHEN {_BEGINS_TO_HOLD} THEN 'failing'
                     ELSE known.state END,
        paused_at = CASE WHEN {_PAUSES} THEN clock_timestamp() ELSE known.paused_at END,
        num_failures = known.num_failures + 1,
        num_probes = known.num_probes
            + CASE WHEN known.state = 'failing' AND :is_probe THEN 1 ELSE 0 END,
        failing_since = coalesce(known.failing_since, clock_timestamp()),
        next_probe_at = CASE
            WHEN {_PAUSES} THEN NULL
            WHEN {_BEGINS_TO_HOLD} OR (known.state = 'failing' AND :is_probe)
            THEN clock_timestamp() + make_interval(secs => greatest(
                     CAST(:patience_seconds AS float8),
                     least(CAST(:max_probe_seconds AS float8),
                           :first_probe_seconds * power(2, least(known.num_probes, 30)))))
            ELSE known.next_probe_at END,
        last_failed_at = clock_timestamp(),
        last_error_code = :error_code,
        last_error_detail = :error_detail
    RETURNING known.state
    """
)
