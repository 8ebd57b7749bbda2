"""What succeeded jobs used, summed by day, key, batch, tag and tier, from sums that are kept.

A trigger writes what each job used as a row of changes when it succeeds (migration 0022). Readers add these
rows to the sums, into which `storage.counts.fold` moves them (docs/adr/0032). What a batch used is a sum of
its own, since clients poll it. It knows no prices: the worker that ended a job wrote its cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, TextClause, text

from catalogue.accounting import Cost
from storage.database import Database
from storage.tables import ACCOUNTED_BY

DIMENSIONS = ("day", "key_id", "batch_id", "tag", "tier")
"""What usage can be asked by, in the order of the rows: later days first, then texts in ascending order."""


@dataclass(frozen=True)
class Used:
    """What jobs used together. `cost` is None if nothing of it has a cost in the asked currency."""

    num_jobs: int = 0
    num_images: int = 0
    device_seconds: float = 0.0
    cost: Cost | None = None
    unpriced_device_seconds: float = 0.0
    """Those that `cost` does not include: of devices without a price, or with one in another currency."""


ByCurrency = Mapping[str, Used]
"""What was used by the currency of its cost; an empty text is what has none."""


@dataclass(frozen=True)
class UsageRow:
    """What the jobs with these dimensions used; the text of a dimension is empty for jobs that have none."""

    dimensions: Mapping[str, date | str]
    used: Used


@dataclass(frozen=True)
class UsageFilter:
    """Which jobs count: those that ended from the day `since` to the day before `until`, in UTC."""

    since: date
    until: date
    key_id: str | None = None
    batch_id: str | None = None
    tag: str | None = None


def usage(
    db: Database,
    account_id: str,
    by: Sequence[str],
    asked: UsageFilter,
    *,
    currency: str,
    limit: int,
    after: Sequence[str] | None = None,
) -> tuple[list[UsageRow], Used]:
    """The account's usage by these of `DIMENSIONS`, and the sum of all rows, not only of those returned.

    `after` are the texts of the dimensions of the previous page's last row, in the order of `DIMENSIONS`.
    Costs in other currencies than `currency` are left out. It is one statement, so the rows add up to the
    sum.
    """
    dimensions = tuple(name for name in DIMENSIONS if name in by)
    filters = tuple(name for name in ("key_id", "batch_id", "tag") if getattr(asked, name) is not None)
    parameters: dict[str, Any] = {
        "account_id": account_id,
        "since": asked.since,
        "until": asked.until,
        "currency": currency,
        "limit": limit + 1,  # and the sum
        **{name: getattr(asked, name) for name in filters},
    }
    if after is not None:
        parameters |= {f"after_{name}": value for name, value in zip(dimensions, after, strict=True)}
    statement = _usage(dimensions, filters, is_continued=after is not None)
    total, *rows = db.execute(statement, parameters, account_id=account_id, idempotent=True)
    found = [
        UsageRow({name: row._mapping[name] for name in dimensions}, _used(row, currency)) for row in rows
    ]
    return found, _used(total, currency)


def of_batches(connection: Connection, batch_ids: Sequence[str]) -> Mapping[str, ByCurrency]:
    """What the jobs of each of these batches used, of those that the connection's role sees, by its id."""
    found: dict[str, dict[str, Used]] = {}
    for row in connection.execute(_OF_BATCHES, {"ids": list(batch_ids)}):
        cost = Cost(row.cost_amount, row.cost_currency) if row.cost_currency else None
        used = Used(int(row.num_jobs), int(row.num_images), float(row.device_seconds), cost)
        found.setdefault(row.batch_id, {})[row.cost_currency] = used
    return found


def in_currency(parts: ByCurrency, currency: str) -> Used:
    """The sum of what was used, with the cost in this currency."""
    return Used(
        num_jobs=sum(used.num_jobs for used in parts.values()),
        num_images=sum(used.num_images for used in parts.values()),
        device_seconds=sum(used.device_seconds for used in parts.values()),
        cost=parts[currency].cost if currency in parts else None,
        unpriced_device_seconds=sum(
            used.device_seconds for priced_in, used in parts.items() if priced_in != currency
        ),
    )


def _used(row: Row[Any], currency: str) -> Used:
    cost = None if row.cost_amount is None else Cost(row.cost_amount, currency)
    return Used(
        row.num_jobs, row.num_images, float(row.device_seconds), cost, float(row.unpriced_device_seconds)
    )


_COUNTED = ("num_jobs", "num_images", "device_seconds", "cost_amount")
_AMOUNTS = ", ".join(_COUNTED)
_SUMMED = """coalesce(sum(num_jobs), 0)::bigint AS num_jobs,
           coalesce(sum(num_images), 0)::bigint AS num_images,
           coalesce(sum(device_seconds), 0) AS device_seconds,
           sum(cost_amount) FILTER (WHERE cost_currency = :currency) AS cost_amount,
           coalesce(sum(device_seconds) FILTER (WHERE cost_currency <> :currency), 0)
           AS unpriced_device_seconds"""
_OF_BATCHES = text(
    f"""
    SELECT batch_id, cost_currency, {", ".join(f"sum({name}) AS {name}" for name in _COUNTED)}
      FROM (SELECT batch_id, cost_currency, {_AMOUNTS} FROM batch_usage
             WHERE batch_id = ANY(:ids)
            UNION ALL
            SELECT batch_id, cost_currency, {_AMOUNTS} FROM usage_changes
             WHERE batch_id = ANY(:ids) AND batch_id <> '') AS used
     GROUP BY batch_id, cost_currency
    """
)


@lru_cache(maxsize=64)
def _usage(dimensions: tuple[str, ...], filters: tuple[str, ...], *, is_continued: bool) -> TextClause:
    """The sum, then a page of rows. The days to a late one stand for days, so that all columns ascend."""
    names = ", ".join(dimensions)
    is_asked = "account_id = :account_id AND day >= :since AND day < :until" + "".join(
        f" AND {name} = :{name} AND {name} <> ''" for name in filters
    )
    kept = f"SELECT day, {', '.join(ACCOUNTED_BY)}, {_AMOUNTS}"
    order = ", ".join("DATE '9999-01-01' - day" if name == "day" else name for name in dimensions)
    last = ", ".join(
        "DATE '9999-01-01' - CAST(:after_day AS date)" if name == "day" else f":after_{name}"
        for name in dimensions
    )
    behind = f"OR ({order}) > ({last})" if is_continued else "OR true"
    return text(
        f"""
        WITH used AS (
            {kept} FROM usage_sums WHERE {is_asked}
            UNION ALL
            {kept} FROM usage_changes WHERE {is_asked}
        ), grouped AS (
            SELECT GROUPING({dimensions[0]}) = 1 AS is_sum, {names}, {_SUMMED}
              FROM used GROUP BY GROUPING SETS (({names}), ())
        )
        SELECT * FROM grouped WHERE is_sum {behind} ORDER BY is_sum DESC, {order} LIMIT :limit
        """
    )


_KEY = f"account_id, day, {', '.join(ACCOUNTED_BY)}"
_FOLDED_AMOUNTS = ", ".join(f"sum({name})" for name in _COUNTED)
_ADDED = ", ".join(f"{name} = known.{name} + excluded.{name}" for name in _COUNTED)
FOLD_USAGE = text(
    f"""
    WITH folded AS (
        DELETE FROM usage_changes
         WHERE id = ANY(ARRAY(SELECT id FROM usage_changes ORDER BY id LIMIT :limit))
        RETURNING {_KEY}, {_AMOUNTS}
    ), summed AS (
        INSERT INTO usage_sums AS known ({_KEY}, {_AMOUNTS})
        SELECT {_KEY}, {_FOLDED_AMOUNTS} FROM folded GROUP BY {_KEY}
        ON CONFLICT ({_KEY}) DO UPDATE SET {_ADDED}
    ), of_batches AS (
        INSERT INTO batch_usage AS known (batch_id, cost_currency, account_id, {_AMOUNTS})
        SELECT batch_id, cost_currency, account_id, {_FOLDED_AMOUNTS}
          FROM folded WHERE batch_id <> '' GROUP BY batch_id, cost_currency, account_id
        ON CONFLICT (batch_id, cost_currency) DO UPDATE SET {_ADDED}
    )
    SELECT count(*) FROM folded
    """
)
"""Moves up to `:limit` changes into the sums, for `storage.counts.fold`."""
