"""A worker that ends gives back what it still holds, uncharged, before anything kills it."""

import pytest

from catalogue.states import State
from storage import jobs
from storage.database import Database
from storage.errors import Unavailable
from storage.job_views import get
from storage.jobs import Claim, WorkerName
from tasks.in_flight import InFlightJobs
from tasks.process_end import let_go
from tests.integration.tasks.conftest import MakeJob


@pytest.fixture
def claim(database: Database, tier: str, make_job: MakeJob) -> Claim:
    """A claimed job."""
    claimed = jobs.claim(
        database, make_job().id, tiers=[tier], worker=WorkerName("boot", "cpu:0@test"), lease_seconds=30
    )
    assert claimed is not None
    return claimed


def test_a_job_that_is_still_held_is_given_back_uncharged_and_the_process_ends(
    database: Database, worker_database: Database, claim: Claim
) -> None:
    in_flight, codes = InFlightJobs(), list[int]()

    def release(leases: object) -> None:
        jobs.release_each(
            worker_database,
            leases,  # type: ignore[arg-type]  # a sequence of leases
            code="engine_stopped",
            detail="",
            charged=False,
            max_attempts=1,
            backoff_seconds=0,
        )

    with in_flight.hold(claim.lease):
        let_go(in_flight, release, seconds=0.01, exit_process=codes.append)
    after = get(database, claim.job.account_id, claim.job.id)
    assert (after.state, after.num_failures, after.quarantined) == (State.QUEUED, 0, False)
    assert codes == [0]
    stored: list[object] = []
    assert not jobs.finish(database, claim.lease, stored=stored, warnings=[], timings={})  # type: ignore[arg-type]


def test_a_worker_that_holds_nothing_ends_by_itself() -> None:
    codes: list[int] = []
    let_go(InFlightJobs(), lambda _: pytest.fail("nothing is held"), seconds=0.01, exit_process=codes.append)
    assert codes == []


def test_a_worker_ends_also_while_postgres_is_away(claim: Claim) -> None:
    in_flight, codes = InFlightJobs(), list[int]()

    def refuse(_leases: object) -> None:
        raise Unavailable("it is away")

    with in_flight.hold(claim.lease):
        let_go(in_flight, refuse, seconds=0.01, exit_process=codes.append)
    assert codes == [0]
