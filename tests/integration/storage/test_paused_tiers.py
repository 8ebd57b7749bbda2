"""No job of a paused tier starts, in whatever way a worker would claim it; those that run go on."""

import secrets
from typing import Any

import pytest
from sqlalchemy import text

from catalogue.states import State
from storage import jobs
from storage.database import Database
from storage.due_work import due_work
from storage.isolation import next_quarantined
from storage.job_views import get
from storage.paused_tiers import pause, paused_tiers, resume
from storage.roles import DatabaseRole
from tests.integration.storage.conftest import WORKER, MakeJob

Databases = dict[DatabaseRole, Database]


@pytest.fixture
def tier(database: Database) -> str:
    """A tier of this test's own, paused."""
    name = f"tier-{secrets.token_hex(4)}"
    pause(database, [name], reason="new weights")
    return name


def test_no_claim_takes_a_job_of_a_paused_tier_until_it_is_resumed(
    databases: Databases, database: Database, make_job: MakeJob, tier: str
) -> None:
    worker = databases["worker"]
    interactive, bulk = make_job(tier=tier), make_job(tier=tier, lane="bulk")

    def claimed() -> set[str]:
        asked: dict[str, Any] = {"tiers": [tier, "another"], "worker": WORKER, "lease_seconds": 30.0}
        dispatched = jobs.claim_each(worker, [interactive.id], takes_quarantined=True, **asked)
        return {*dispatched, *(one.job.id for one in jobs.claim_next(worker, limit=10, **asked))}

    assert claimed() == set()
    assert resume(database, [tier]) == {tier}
    assert claimed() == {interactive.id, bulk.id}


def test_an_open_tier_beside_a_paused_one_is_served(
    databases: Databases, make_job: MakeJob, tier: str
) -> None:
    make_job(tier=tier, lane="bulk")
    job = make_job(tier=f"{tier}-open", lane="bulk")
    (claim,) = jobs.claim_next(
        databases["worker"], tiers=[tier, f"{tier}-open"], worker=WORKER, lease_seconds=30, limit=10
    )
    assert claim.job.id == job.id


def test_a_quarantined_job_of_a_paused_tier_is_not_looked_for(
    databases: Databases, database: Database, make_job: MakeJob, tier: str
) -> None:
    job = make_job(tier=tier)
    with database.transaction() as connection:
        statement = text("UPDATE jobs SET quarantined = true, dispatch_number = NULL WHERE id = :id")
        connection.execute(statement, {"id": job.id})
        due = text("UPDATE jobs SET next_dispatch_at = clock_timestamp() WHERE id = :id")
        connection.execute(due, {"id": job.id})
    assert next_quarantined(databases["worker"], [tier]) is None
    resume(database, [tier])
    assert next_quarantined(databases["worker"], [tier]) == job.id


def test_a_job_that_runs_ends_while_its_tier_is_paused(database: Database, make_job: MakeJob) -> None:
    tier = f"tier-{secrets.token_hex(4)}"
    job = make_job(tier=tier)
    claim = jobs.claim(database, job.id, tiers=[tier], worker=WORKER, lease_seconds=30)
    assert claim is not None
    pause(database, [tier])
    assert jobs.finish(database, claim.lease, stored=[], warnings=[], timings={})
    assert get(database, job.account_id, job.id).state is State.SUCCEEDED


def test_the_sweeper_has_nothing_to_dispatch_for_a_paused_tier(
    databases: Databases, database: Database, make_job: MakeJob, tier: str
) -> None:
    job = make_job(tier=tier)

    def due() -> tuple[str, ...]:
        found = due_work(databases["sweeper"], [tier], webhook_keep_seconds=60, silent_seconds=60)
        return found.undispatched + found.dispatched

    assert due() == ()
    resume(database, [tier])
    assert due() == (tier,)
    jobs.cancel(database, job.account_id, job.id)


def test_a_pause_keeps_its_instant_and_takes_a_new_reason(
    databases: Databases, database: Database, tier: str
) -> None:
    before = paused_tiers(databases["api"])[tier]
    pause(database, [tier], reason="still new weights")
    after = paused_tiers(databases["api"])[tier]
    assert (before.reason, after.reason) == ("new weights", "still new weights")
    assert before.paused_at == after.paused_at
    assert resume(database, [tier]) == {tier}
    assert resume(database, [tier]) == set()
