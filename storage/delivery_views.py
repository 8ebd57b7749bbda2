"""Reads webhook deliveries: those of an account, and the backlog of all accounts. It changes no rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import TextClause, select, text, tuple_

from storage.database import Database
from storage.errors import NotFound
from storage.tables import webhook_attempts, webhook_deliveries, webhook_receivers

MAX_ATTEMPTS_SHOWN = 100
"""The number of attempts is not bounded, since each replay starts a new schedule."""


@dataclass(frozen=True)
class Delivery:
    """One event to send to one URL. While it is being sent, `next_attempt_at` is the end of the lease.

    Since `held_at` it waits for a failing receiver, whose state is `receiver_state`.
    """

    id: str
    account_id: str
    job_id: str | None
    batch_id: str | None
    event: str
    url: str
    state: str
    num_attempts: int
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    held_at: datetime | None
    error_code: str | None
    receiver_state: str | None


@dataclass(frozen=True)
class Attempt:
    """One attempt. Without `milliseconds` it is running, or its sender was lost."""

    number: int
    started_at: datetime
    milliseconds: int | None
    response_status: int | None
    error_code: str | None
    error_detail: str | None
    answer: str | None


def get(db: Database, account_id: str, delivery_id: str) -> tuple[Delivery, list[Attempt]]:
    """The account's delivery and its latest attempts, oldest first; raises `NotFound`."""
    query = select(*_DELIVERY).where(
        webhook_deliveries.c.id == delivery_id, webhook_deliveries.c.account_id == account_id
    )
    made = (
        select(*_ATTEMPT)
        .where(webhook_attempts.c.delivery_id == delivery_id)
        .order_by(webhook_attempts.c.number.desc())
        .limit(MAX_ATTEMPTS_SHOWN)
    )
    with db.transaction(account_id=account_id) as connection:
        row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound(f"no webhook delivery {delivery_id!r}")
        attempts = [Attempt(**attempt._mapping) for attempt in connection.execute(made)]
    return Delivery(**row._mapping), attempts[::-1]


def list_deliveries(
    db: Database,
    account_id: str,
    *,
    states: Sequence[str] = (),
    job_id: str | None = None,
    batch_id: str | None = None,
    limit: int = 50,
    before: tuple[datetime, str] | None = None,
) -> list[Delivery]:
    """The account's deliveries, newest first; `before` is `(created_at, id)` of the previous page's last."""
    table = webhook_deliveries.c
    query = select(*_DELIVERY).where(table.account_id == account_id)
    parameters: dict[str, object] = {}
    if job_id is not None or batch_id is not None:  # which has a few deliveries at most
        for column, wanted in ((table.job_id, job_id), (table.batch_id, batch_id)):
            if wanted is not None:
                query = query.where(column == wanted)
        if states:
            query = query.where(table.state.in_(states))
        if before is not None:
            query = query.where(tuple_(table.created_at, table.id) < before)
    else:
        created_at, last_id = before or (None, None)
        query = query.where(_in_page(is_continued=before is not None))
        parameters = {
            "account_id": account_id,
            "states": [*states] or [*_STATES],
            "created_at": created_at,
            "last_id": last_id,
            "limit": limit,
        }
    query = query.order_by(table.created_at.desc(), table.id.desc()).limit(limit)
    with db.transaction(account_id=account_id) as connection:
        return [Delivery(**row._mapping) for row in connection.execute(query, parameters)]


def _in_page(*, is_continued: bool) -> TextClause:
    """Whether a delivery is in a page; an index has the deliveries of each state in the order of the list."""
    behind = "AND (created_at, id) < (:created_at, :last_id)" if is_continued else ""
    return text(
        f"""webhook_deliveries.id = ANY(ARRAY(
            SELECT newest.id FROM unnest(CAST(:states AS text[])) AS states (state)
             CROSS JOIN LATERAL (
                    SELECT id, created_at FROM webhook_deliveries
                     WHERE account_id = :account_id AND state = states.state {behind}
                     ORDER BY created_at DESC, id DESC LIMIT :limit) AS newest
             ORDER BY newest.created_at DESC, newest.id DESC LIMIT :limit))"""
    )


def num_pending(db: Database) -> int:
    """The number of pending deliveries of all accounts."""
    with db.transaction() as connection:
        return int(connection.execute(text("SELECT num_pending FROM webhook_backlog")).scalar_one())


def seconds_late(db: Database) -> float:
    """The age in seconds of the oldest due delivery of an account with no attempt in flight; else 0.

    An account with attempts in flight waits for its receivers and not for us, so it does not count.
    """
    with db.transaction() as connection:
        return float(connection.execute(text("SELECT seconds_late FROM webhook_backlog")).scalar_one())


_STATES = ("pending", "delivered", "failed")
_RECEIVER_STATE = (
    select(webhook_receivers.c.state)
    .where(
        webhook_receivers.c.account_id == webhook_deliveries.c.account_id,
        webhook_receivers.c.receiver == webhook_deliveries.c.receiver,
        webhook_receivers.c.state != "doubted",
        webhook_deliveries.c.state == "pending",
    )
    .scalar_subquery()
    .label("receiver_state")
)
_DELIVERY = [
    _RECEIVER_STATE if name == "receiver_state" else webhook_deliveries.c[name]
    for name in Delivery.__dataclass_fields__
]
_ATTEMPT = [webhook_attempts.c[name] for name in Attempt.__dataclass_fields__]
