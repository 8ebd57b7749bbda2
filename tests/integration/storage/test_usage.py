"""The sums of usage are what the rows of succeeded jobs say, however they ended and whoever reads them."""

import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from catalogue.accounting import Cost, Prices
from storage import accounts, batches, counts, jobs, submissions, usage
from storage.database import Database
from storage.roles import DatabaseRole
from storage.usage import DIMENSIONS, UsageFilter, Used
from tests.fixtures.new_jobs import new_job

from .conftest import WORKER

LONG_AGO, SOME_DAY = date(2000, 1, 1), date(2100, 1, 1)
EVER = UsageFilter(LONG_AGO, SOME_DAY)
TIERS = ["sd", "hd"]


@pytest.fixture
def account(database: Database) -> str:
    """An account of the test's own, whose usage nothing else changes."""
    return accounts.create_account(database, "usage")


def run(database: Database, account: str, *, cost: Cost | None, seconds: float, **changes: Any) -> str:
    """A job that succeeds; its id."""
    job = submissions.create(database, new_job(account, **changes), redispatch_seconds=15)[0]
    claim = jobs.claim(database, job.id, tiers=TIERS, worker=WORKER, lease_seconds=30)
    assert claim is not None
    timings = {"device_seconds": seconds}
    assert jobs.finish(database, claim.lease, stored=[], warnings=[], timings=timings, cost=cost)
    return job.id


def of_rows(database: Database, account: str, by: list[str]) -> dict[tuple[object, ...], dict[str, Any]]:
    """The same sums, from the jobs themselves."""
    columns = {"day": "(finished_at AT TIME ZONE 'UTC')::date AS day"}
    query = text(
        f"""SELECT {", ".join(columns.get(name, f"coalesce({name}, '') AS {name}") for name in by)},
                   num_images, (timings ->> 'device_seconds')::numeric AS seconds, cost_amount, cost_currency
              FROM jobs WHERE account_id = :account_id AND state = 'succeeded'"""
    )
    found: dict[tuple[object, ...], dict[str, Any]] = defaultdict(
        lambda: {"num_jobs": 0, "num_images": 0, "seconds": Decimal(0), "cost": None, "unpriced": Decimal(0)}
    )
    with database.transaction() as connection:
        for row in connection.execute(query, {"account_id": account}):
            sums = found[tuple(row._mapping[name] for name in by)]
            sums["num_jobs"] += 1
            sums["num_images"] += row.num_images
            sums["seconds"] += row.seconds
            if row.cost_currency == "USD":
                sums["cost"] = (sums["cost"] or 0) + row.cost_amount
            else:
                sums["unpriced"] += row.seconds
    return dict(found)


def kept(
    database: Database, account: str, by: list[str], asked: UsageFilter = EVER
) -> dict[tuple[object, ...], dict[str, Any]]:
    rows, total = usage.usage(database, account, by, asked, currency="USD", limit=1000)
    found: dict[tuple[object, ...], dict[str, Any]] = {
        tuple(row.dimensions.values()): _facts(row.used) for row in rows
    }
    assert total.num_jobs == sum(row.used.num_jobs for row in rows)
    assert total.device_seconds == pytest.approx(sum(row.used.device_seconds for row in rows))
    return found


def _facts(used: Used) -> dict[str, Any]:
    return {
        "num_jobs": used.num_jobs,
        "num_images": used.num_images,
        "seconds": Decimal(str(used.device_seconds)),
        "cost": None if used.cost is None else used.cost.amount,
        "unpriced": Decimal(str(used.unpriced_device_seconds)),
    }


def test_usage_is_the_sum_of_the_rows_before_and_after_the_fold(database: Database, account: str) -> None:
    draw = random.Random(7)
    prices = [None, Prices(per_hour={"cpu": 3.7}), Prices(currency="EUR", per_hour={"cpu": 3})]
    for number in range(30):
        prices_then = draw.choice(prices)
        price = prices_then and prices_then.of("x", is_cpu=True)
        seconds = round(draw.random(), 4)
        run(
            database,
            account,
            cost=price.cost_of(seconds) if price else None,
            seconds=seconds,
            tag=draw.choice([None, "a", "b"]),
            key_id=draw.choice([None, "key_1", "key_2"]),
            tier=draw.choice(TIERS),
            num_images=1 + number % 4,
        )
        if number == 20:
            counts.fold(database)
    groups = [["day"], ["tag"], ["key_id", "tier"], [*DIMENSIONS]]
    before = [kept(database, account, by) for by in groups]
    assert before == [of_rows(database, account, by) for by in groups]
    while counts.fold(database):
        pass
    assert [kept(database, account, by) for by in groups] == [of_rows(database, account, by) for by in groups]


def test_only_what_succeeds_is_used_and_only_once(database: Database, account: str) -> None:
    first = submissions.create(database, new_job(account), redispatch_seconds=15)[0]
    claim = jobs.claim(database, first.id, tiers=TIERS, worker=WORKER, lease_seconds=30)
    assert claim is not None
    jobs.release(
        database,
        claim.lease,
        code="x",
        detail="x",
        charged=True,
        max_attempts=3,
        backoff_seconds=0,
    )
    again = jobs.claim(database, first.id, tiers=TIERS, worker=WORKER, lease_seconds=30)
    assert again is not None
    ended: dict[str, Any] = {"stored": [], "warnings": [], "timings": {"device_seconds": 2.0}}
    assert not jobs.finish(database, claim.lease, **ended), "the lease of an earlier attempt"
    assert jobs.finish(database, again.lease, **ended)
    assert not jobs.finish(database, again.lease, **ended), "the answer was lost, and it is sent again"
    failed = submissions.create(database, new_job(account), redispatch_seconds=15)[0]
    claim = jobs.claim(database, failed.id, tiers=TIERS, worker=WORKER, lease_seconds=30)
    assert claim is not None
    jobs.fail(database, claim.lease, code="nan", detail="x", retryable=False)
    canceled = submissions.create(database, new_job(account), redispatch_seconds=15)[0]
    jobs.cancel(database, account, canceled.id)
    (only,) = kept(database, account, ["day"]).values()
    assert (only["num_jobs"], only["seconds"]) == (1, 2.0)


def test_a_finish_that_is_rolled_back_used_nothing(database: Database, account: str) -> None:
    job = submissions.create(database, new_job(account), redispatch_seconds=15)[0]
    assert jobs.claim(database, job.id, tiers=TIERS, worker=WORKER, lease_seconds=30)

    class Undo(Exception):
        """Ends the transaction."""

    finished = text(
        """UPDATE jobs SET state = 'succeeded', finished_at = now(), lease_token = NULL, lease_boot_id = NULL,
                  lease_expires_at = NULL WHERE id = :id"""
    )

    def undone() -> None:
        with database.transaction() as connection:
            connection.execute(finished, {"id": job.id})
            raise Undo

    with pytest.raises(Undo):
        undone()
    assert kept(database, account, ["day"]) == {}


def test_a_batch_sums_its_own_jobs(database: Database, account: str) -> None:
    csv = {"lane": "bulk", "tier": "of its own", "tag": "csv", "key_id": "key_9"}  # no other jobs are claimed
    rows = [new_job(account, batch_line=line, **csv) for line in (2, 3, 4)]
    batch, _ = batches.create(database, account, "x.csv", rows)
    run(database, account, cost=None, seconds=100.0)
    price = Prices(per_hour={"cpu": 7200}).of("x", is_cpu=True)
    assert price is not None
    claims = jobs.claim_next(database, tiers=["of its own"], worker=WORKER, lease_seconds=30, limit=100)
    ours = [claim for claim in claims if claim.job.batch_id == batch.id]
    assert [(claim.job.tag, claim.job.key_id) for claim in ours] == [("csv", "key_9")] * 3
    for number, claim in enumerate(ours):
        cost = price.cost_of(0.5) if number else None
        ended = jobs.Finished(claim.lease, [], [], {"device_seconds": 0.5}, cost=cost)
        assert jobs.finish_each(database, [ended])
        if number == 1:
            counts.fold(database)
    used = usage.in_currency(batches.get(database, account, batch.id).used, "USD")
    assert used == Used(3, 3, 1.5, Cost(Decimal(2), "USD"), 0.5)
    assert batches.list_batches(database, account)[0].used
    counts.fold(database)
    assert usage.in_currency(batches.get(database, account, batch.id).used, "USD") == used
    in_euros = usage.in_currency(batches.get(database, account, batch.id).used, "EUR")
    assert (in_euros.cost, in_euros.unpriced_device_seconds) == (None, 1.5)
    one = UsageFilter(LONG_AGO, SOME_DAY, batch_id=batch.id)
    assert list(kept(database, account, ["tag", "key_id"], one)) == [("key_9", "csv")]


def test_a_batch_reads_one_sum_whatever_its_tags_and_keys(database: Database, account: str) -> None:
    rows = [
        new_job(account, lane="bulk", tier="another of its own", batch_line=line, tag=f"row-{line}")
        for line in range(2, 12)
    ]
    batch, _ = batches.create(database, account, "x.csv", rows)
    claims = jobs.claim_next(
        database, tiers=["another of its own"], worker=WORKER, lease_seconds=30, limit=100
    )
    for claim in (one for one in claims if one.job.batch_id == batch.id):
        assert jobs.finish(database, claim.lease, stored=[], warnings=[], timings={"device_seconds": 0.5})
    while counts.fold(database):
        pass
    query = text(
        """SELECT (SELECT count(*) FROM usage_sums WHERE batch_id = :id) AS num_tags,
                  (SELECT array_agg(num_jobs) FROM batch_usage WHERE batch_id = :id) AS jobs"""
    )
    with database.transaction() as connection:
        row = connection.execute(query, {"id": batch.id}).one()
    assert (row.num_tags, row.jobs) == (10, [10])
    assert usage.in_currency(batches.get(database, account, batch.id).used, "USD").num_jobs == 10


def test_another_account_sees_no_usage(
    databases: dict[DatabaseRole, Database], database: Database, account: str
) -> None:
    run(database, account, cost=None, seconds=1.0, tag="secret")
    stranger = accounts.create_account(database, "stranger")
    rows, total = usage.usage(databases["api"], stranger, ["tag"], EVER, currency="USD", limit=10)
    assert (rows, total) == ([], Used())
    (own,), _ = usage.usage(databases["api"], account, ["tag"], EVER, currency="USD", limit=10)
    assert own.dimensions == {"tag": "secret"}


def test_pages_of_usage_have_every_row_once_and_the_same_sum(database: Database, account: str) -> None:
    for number in range(7):
        run(database, account, cost=None, seconds=1.0, tag=f"t{number % 4}" if number % 4 else None)
    _move_days(database, account)
    by = ["day", "tag"]
    (every, total) = usage.usage(database, account, by, EVER, currency="USD", limit=100)
    assert [row.dimensions["day"] for row in every] == sorted(
        (row.dimensions["day"] for row in every), reverse=True
    )
    pages, after = [], None
    while True:
        page, of_page = usage.usage(database, account, by, EVER, currency="USD", limit=2, after=after)
        assert of_page == total
        pages += page
        if len(page) < 2:
            break
        after = [str(value) for value in page[-1].dimensions.values()]
    assert pages == every
    assert len(every) == 7


def test_days_are_counted_from_since_to_before_until(database: Database, account: str) -> None:
    run(database, account, cost=None, seconds=1.0)
    today = datetime.now(UTC).date()
    for since, until, num in ((-1, 0, 0), (0, 1, 1), (-1, 1, 1), (1, 2, 0)):
        asked = UsageFilter(today + timedelta(days=since), today + timedelta(days=until))
        assert len(kept(database, account, ["tier"], asked)) == num


def _move_days(database: Database, account: str) -> None:
    """Put each job's usage on a day of its own."""
    statement = text("UPDATE usage_changes SET day = day - (id % 1000)::int WHERE account_id = :account_id")
    with database.transaction() as connection:
        connection.execute(statement, {"account_id": account})
