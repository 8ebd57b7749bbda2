"""The promises about dispatches: none is forgotten, none is doubled by age, accounts take turns."""

import secrets
from collections import Counter

import pytest
from sqlalchemy import text

from storage import accounts, dispatches, submissions
from storage.database import Database
from storage.jobs import cancel
from tests.fixtures.new_jobs import new_job
from tests.integration.storage.conftest import MakeJob


@pytest.fixture
def tier() -> str:
    """A tier of this test's own."""
    return f"tier-{secrets.token_hex(4)}"


def make_due(database: Database) -> None:
    """Let every queued job's wait be over."""
    with database.transaction() as connection:
        connection.execute(
            text("UPDATE jobs SET next_dispatch_at = clock_timestamp() WHERE state = 'queued'")
        )


def feed(database: Database, tier: str, limit: int = 100, lane: str = "bulk") -> list[str]:
    found = dispatches.feed(database, tier, lane, limit, redispatch_seconds=15)
    return [dispatch.job_id for dispatch in found.dispatches]


def redispatch_lost(database: Database, tier: str, older_than: int | None) -> list[str]:
    found = dispatches.redispatch_lost(
        database, tier, "interactive", older_than=older_than, limit=100, redispatch_seconds=15
    )
    return [dispatch.job_id for dispatch in found]


def test_a_fresh_interactive_job_has_its_bell_counted_for_its_caller_to_ring(
    database: Database, make_job: MakeJob, tier: str
) -> None:
    job = make_job(tier=tier)
    dispatch = dispatches.of_new_job(database, job.id)
    assert dispatch is not None
    assert (dispatch.tier, dispatch.lane, dispatch.dispatch_seq) == (tier, "interactive", 1)
    assert feed(database, tier, lane="interactive") == []


def test_bulk_accounts_take_turns_whatever_the_size_of_their_batches(database: Database, tier: str) -> None:
    large, small = (accounts.create_account(database, name) for name in ("large", "small"))
    first = [_bulk(database, tier, large) for _ in range(6)]
    second = [_bulk(database, tier, small) for _ in range(2)]
    assert feed(database, tier, 4) == [first[0], second[0], first[1], second[1]]
    assert feed(database, tier, 10) == first[2:]


def test_of_more_accounts_than_a_feed_serves_each_has_its_turn(database: Database, tier: str) -> None:
    """The first account, whose jobs are the oldest, has new ones all the time."""
    owners = sorted(accounts.create_account(database, f"account {number}") for number in range(5))
    made = {_bulk(database, tier, owner): owner for owner in owners for _ in range(4)}
    last, served = "", []
    for _ in range(5):
        found = dispatches.feed(database, tier, "bulk", 2, redispatch_seconds=15, after_account=last)
        last = found.last_account
        served += sorted(made[dispatch.job_id] for dispatch in found.dispatches)
        made[_bulk(database, tier, owners[0])] = owners[0]
    assert Counter(served) == dict.fromkeys(owners, 2)


def _bulk(database: Database, tier: str, account: str) -> str:
    request = new_job(account, tier=tier, lane="bulk")
    return submissions.create(database, request, redispatch_seconds=15)[0].id


def test_a_bell_in_a_long_queue_is_not_doubled_however_old_it_is(
    database: Database, make_job: MakeJob, tier: str
) -> None:
    jobs = [make_job(tier=tier) for _ in range(3)]
    make_due(database)
    dispatch = dispatches.of_new_job(database, jobs[0].id)
    assert dispatch is not None
    assert not {job.id for job in jobs} & set(redispatch_lost(database, tier, dispatch.dispatch_number))


def test_bells_that_left_the_queue_without_being_heard_are_replaced(
    database: Database, make_job: MakeJob, tier: str
) -> None:
    gone, waiting = make_job(tier=tier), make_job(tier=tier)
    make_due(database)
    head = dispatches.of_new_job(database, waiting.id)
    assert head is not None
    assert redispatch_lost(database, tier, head.dispatch_number) == [gone.id]
    make_due(database)
    assert set(redispatch_lost(database, tier, None)) == {gone.id, waiting.id}


def test_a_job_whose_messages_get_lost_is_dispatched_less_and_less_often(
    database: Database, make_job: MakeJob, tier: str
) -> None:
    job = make_job(tier=tier)
    waits = []
    for _ in range(8):
        make_due(database)
        assert redispatch_lost(database, tier, None) == [job.id]
        query = text("SELECT next_dispatch_at - dispatched_at AS wait FROM jobs WHERE id = :id")
        with database.transaction() as connection:
            waits.append(round(connection.execute(query, {"id": job.id}).scalar_one().total_seconds()))
    assert waits == [30, 60, 60, 60, 60, 60, 60, 60]


def test_a_dispatch_that_was_not_published_delays_no_later_one(
    database: Database, make_job: MakeJob, tier: str
) -> None:
    """While the broker is away, every sweep tries again."""
    job = make_job(tier=tier)
    for _ in range(8):
        dispatches.undispatch(database, job.id)
        assert feed(database, tier, lane="interactive") == [job.id]
    query = text("SELECT dispatch_seq, next_dispatch_at - dispatched_at AS wait FROM jobs WHERE id = :id")
    with database.transaction() as connection:
        row = connection.execute(query, {"id": job.id}).one()
    assert (row.dispatch_seq, round(row.wait.total_seconds())) == (1, 15)


def test_a_dispatch_that_could_not_be_published_is_undone(
    database: Database, make_job: MakeJob, tier: str
) -> None:
    job = make_job(tier=tier, lane="bulk")
    assert feed(database, tier) == [job.id]
    assert feed(database, tier) == []
    dispatches.undispatch(database, job.id)
    assert feed(database, tier) == [job.id]


def test_when_the_broker_forgets_every_queued_job_is_due_and_no_other(
    database: Database, make_job: MakeJob, tier: str
) -> None:
    queued, canceled = make_job(tier=tier), make_job(tier=tier)
    cancel(database, canceled.account_id, canceled.id)
    assert dispatches.forget_all(database) >= 1
    due = feed(database, tier, lane="interactive")
    assert queued.id in due
    assert canceled.id not in due
