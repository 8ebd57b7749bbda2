"""Whatever threads do to the same jobs at the same moment, each job has one history and at most one outcome.

Unlike `test_state_machine`, nothing here knows which of two writes came first: what is tested is what must be
true of every order.
"""

import random
import secrets
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from sqlalchemy import text

from catalogue.states import TERMINAL
from storage import counts, jobs, submissions
from storage.accounts import create_account
from storage.database import Database
from storage.errors import JobIsFinal, Unavailable
from storage.isolation import clear_isolated, set_isolated
from storage.job_views import StoredImage
from storage.jobs import Claim, Lease, WorkerName
from storage.possible_crashes import settle_silent
from storage.roles import DatabaseRole
from storage.transitions import TRANSITIONS
from storage.workers import Worker, declare_dead, heartbeat, write_progress
from tests.fixtures.new_jobs import new_job

NUM_THREADS, NUM_WRITES, NUM_CONTENDED = 6, 200, 6
LEASE_SECONDS, MAX_ATTEMPTS = 600.0, 3
SOURCES = {one.name: one.sources.value for one in TRANSITIONS}


@dataclass
class Told:
    """What the writes of one thread were told: its claims, and the leases under which it finished a job."""

    claims: list[Claim] = field(default_factory=list)
    finished: list[Lease] = field(default_factory=list)
    failure: Exception | None = None


@dataclass
class Installation:
    """The jobs that all threads write to, and the leases that any of them ever got, the newest last."""

    databases: dict[DatabaseRole, Database]
    owner: Database
    account: str
    tier: str
    ids: list[str] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)

    def submit(self) -> None:
        """A job more: every third is bulk work, every other one has a webhook."""
        number = len(self.ids)
        new = new_job(
            self.account,
            tier=self.tier,
            lane="bulk" if number % 3 == 0 else "interactive",
            webhook_url="https://example.com/hook" if number % 2 else None,
        )
        self.ids.append(submissions.create(self.databases["api"], new, redispatch_seconds=15).job.id)


@pytest.fixture
def installation(databases: dict[DatabaseRole, Database], database: Database) -> Iterator[Installation]:
    """Jobs in a tier that no other test has."""
    tier, account = f"tier-{secrets.token_hex(4)}", create_account(database, "simultaneous")
    made = Installation(databases, database, account, tier)
    for _ in range(NUM_CONTENDED):
        made.submit()
    yield made
    with database.transaction() as connection:
        connection.execute(_END, {"ids": made.ids})


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_job_has_one_history_and_one_outcome_whatever_threads_do_at_once(
    installation: Installation, seed: int
) -> None:
    told = [Told() for _ in range(NUM_THREADS)]
    together = threading.Barrier(NUM_THREADS)
    threads = [
        threading.Thread(target=_write, args=(installation, one, random.Random(f"{seed}-{number}"), together))
        for number, one in enumerate(told)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.failure for one in told] == [None] * NUM_THREADS
    claims = [claim for one in told for claim in one.claims]
    finished = Counter(lease for one in told for lease in one.finished)
    assert claims, "something was done"
    assert finished
    assert max(finished.values()) == 1, "a lease finishes its job once"
    leases = [claim.lease for claim in claims]
    assert len({lease.token for lease in leases}) == len(leases)
    _check_rows(installation, leases, set(finished))
    _check_counts(installation)


def _write(installation: Installation, told: Told, rng: random.Random, together: threading.Barrier) -> None:
    writer = _Writer(installation, told, rng)
    together.wait()
    try:
        for _ in range(NUM_WRITES):
            # What a deadlock ended did nothing, and every caller repeats it.
            with suppress(JobIsFinal, Unavailable):
                writer.write()
    except Exception as error:
        told.failure = error


class _Writer:
    """One process, with a boot id of its own; it also uses leases that others got, or that it has lost."""

    def __init__(self, installation: Installation, told: Told, rng: random.Random) -> None:
        self.all, self.told, self.rng = installation, told, rng
        self.worker = WorkerName(f"boot-{uuid.uuid4()}", "w")
        self.writes: tuple[Callable[[], object], ...] = (
            *(self.claim, self.claim, self.claim_next, self.finish, self.finish, self.release, self.release),
            *(
                self.all.submit,
                self.fail,
                self.cancel,
                self.beat,
                self.progress,
                self.isolate,
                self.let_a_lease_run_out,
            ),
            *(self.reap, self.die, self.expire, self.settle_silent),
        )

    def write(self) -> None:
        """Do one of them."""
        self.rng.choice(self.writes)()

    def _job(self) -> str:
        """One of the newest, so that threads meet at the same job."""
        return self.rng.choice(self.all.ids[-NUM_CONTENDED:])

    def _lease(self) -> Lease:
        leases = self.all.leases
        if not leases or self.rng.random() < 0.1:
            return Lease(self._job(), 1, str(uuid.uuid4()))
        # Mostly one of the newest, which may be held: other threads choose it too.
        return leases[-1 - min(int(self.rng.expovariate(0.3)), len(leases) - 1)]

    def _claimed(self, claims: list[Claim]) -> None:
        self.told.claims += claims
        self.all.leases += [claim.lease for claim in claims]

    def claim(self) -> None:
        """A message was received."""
        found = jobs.claim(
            self.all.databases["worker"],
            self._job(),
            tiers=[self.all.tier],
            worker=self.worker,
            lease_seconds=LEASE_SECONDS,
        )
        self._claimed([found] if found else [])

    def claim_next(self) -> None:
        """Bulk work is asked for."""
        found = jobs.claim_next(
            self.all.databases["worker"],
            tiers=[self.all.tier],
            worker=self.worker,
            lease_seconds=LEASE_SECONDS,
            limit=2,
        )
        self._claimed(found)

    def finish(self) -> None:
        """The images were stored."""
        lease = self._lease()
        key = f"{lease.job_id}/{lease.attempt}/{uuid.uuid4()}"
        image = StoredImage(0, 1, key, "ab" * 32, 10, 128, 128)
        if jobs.finish(self.all.databases["worker"], lease, stored=[image], warnings=[], timings={}):
            self.told.finished.append(lease)

    def release(self) -> None:
        """A job is given back, charged or not."""
        jobs.release_each(
            self.all.databases["worker"],
            [self._lease()],
            code="storage_unavailable",
            detail="no",
            charged=self.rng.random() < 0.3,
            max_attempts=MAX_ATTEMPTS,
            backoff_seconds=0,
        )

    def fail(self) -> None:
        """A job is given up, seldom."""
        if self.rng.random() < 0.1:
            jobs.fail(
                self.all.databases["worker"], self._lease(), code="invalid", detail="no", retryable=False
            )

    def cancel(self) -> None:
        """Its owner wants it no more, seldom."""
        if self.rng.random() < 0.2:
            jobs.cancel(self.all.databases["api"], self.all.account, self._job())

    def beat(self) -> None:
        """Leases are renewed."""
        name = self.worker.boot_id
        worker = Worker(name, name, "here", 1, "cpu:0", (self.all.tier,), 1, 1, "exact")
        heartbeat(self.all.databases["worker"], worker, [(self._lease(), 0.5)], lease_seconds=LEASE_SECONDS)

    def progress(self) -> None:
        """Progress is written."""
        write_progress(self.all.databases["worker"], [(self._lease(), self.rng.random())])

    def isolate(self) -> None:
        """An image of a quarantined job begins or ends alone."""
        lease, worker = self._lease(), self.all.databases["worker"]
        with self.all.owner.transaction() as connection:
            is_quarantined = connection.execute(_IS_QUARANTINED, {"id": lease.job_id}).scalar_one()
        if is_quarantined:
            set_isolated(worker, lease)
            if self.rng.random() < 0.5:
                clear_isolated(worker, lease, progress=0.75)

    def let_a_lease_run_out(self) -> None:
        """Time passes for one job."""
        with self.all.owner.transaction() as connection:
            connection.execute(_LEASE_IS_OVER, {"id": self._job()})

    def reap(self) -> None:
        """The sweeper looks for leases that ran out."""
        jobs.reap(self.all.databases["sweeper"])

    def die(self) -> None:
        """A supervisor sees this process end, and it begins anew."""
        on_device = {self._lease().job_id} if self.rng.random() < 0.5 else None
        declare_dead(self.all.databases["worker"], boot_id=self.worker.boot_id, on_device=on_device)
        self.worker = WorkerName(f"boot-{uuid.uuid4()}", "w")

    def expire(self) -> None:
        """The sweeper looks for deadlines."""
        jobs.expire(self.all.databases["sweeper"])

    def settle_silent(self) -> None:
        """The sweeper gives up waiting for processes that were not heard of."""
        settle_silent(self.all.databases["sweeper"], silent_seconds=0.0)


def _check_rows(installation: Installation, leases: list[Lease], finished: set[Lease]) -> None:
    with installation.owner.transaction() as connection:
        rows = connection.execute(_READ, {"ids": installation.ids}).all()
    assert len(rows) == len(installation.ids)
    for row in rows:
        state, attempt = "queued", 0
        for transition, target, of_attempt in (event.split() for event in row.events):
            assert SOURCES[transition] == state, row
            attempt += transition == "claim"
            assert int(of_attempt) == attempt, row
            state = target
        assert (row.state, row.attempt) == (state, attempt), row
        own = [lease for lease in leases if lease.job_id == row.id]
        assert sorted(lease.attempt for lease in own) == list(range(1, attempt + 1)), row
        success = [lease.attempt for lease in finished if lease.job_id == row.id]
        assert success == ([attempt] if row.state == "succeeded" else []), row
        assert row.images == success, row
        assert (row.token is not None) == (row.state == "running"), row
        if row.state == "running":
            assert row.token == next(lease.token for lease in own if lease.attempt == attempt), row
        assert row.num_deliveries == (row.has_webhook and row.state in {one.value for one in TERMINAL}), row


def _check_counts(installation: Installation) -> None:
    """The sums that triggers keep are those of the rows."""
    while counts.fold(installation.databases["sweeper"]):
        pass
    with installation.owner.transaction() as connection:
        kept = connection.execute(_KEPT, {"tier": installation.tier}).all()
        counted = connection.execute(_COUNTED, {"tier": installation.tier}).all()
    assert {tuple(row) for row in kept} == {tuple(row) for row in counted}


_READ = text(
    """SELECT id, state, attempt, CAST(lease_token AS text) AS token, webhook_url IS NOT NULL AS has_webhook,
              ARRAY(SELECT transition || ' ' || state || ' ' || attempt FROM job_events
                     WHERE job_id = jobs.id ORDER BY job_events.id) AS events,
              ARRAY(SELECT attempt FROM images WHERE job_id = jobs.id) AS images,
              (SELECT count(*) FROM webhook_deliveries WHERE job_id = jobs.id) AS num_deliveries
         FROM jobs WHERE id = ANY(:ids)"""
)
_IS_QUARANTINED = text("SELECT quarantined FROM jobs WHERE id = :id")
_LEASE_IS_OVER = text(
    """UPDATE jobs SET lease_expires_at = clock_timestamp() - interval '1 second'
        WHERE id = :id AND state = 'running'"""
)
_KEPT = text("SELECT lane, queued FROM queue_counts WHERE tier = :tier AND queued > 0")
_COUNTED = text("SELECT lane, count(*) FROM jobs WHERE tier = :tier AND state = 'queued' GROUP BY lane")
_END = text(
    """UPDATE jobs SET state = 'canceled', finished_at = clock_timestamp(), next_dispatch_at = NULL,
              dispatch_number = NULL, lease_token = NULL, lease_boot_id = NULL, lease_expires_at = NULL
        WHERE id = ANY(:ids) AND state IN ('queued', 'running')"""
)
