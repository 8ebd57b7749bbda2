"""Every job as the state machine says it is, beside its row: a model that Hypothesis drives.

`JobMachine` does to real rows what processes do, in any order and under their own database roles, with leases
that are held, lost or forged. After each rule the rows, their events, images and deliveries must be those of
the model. It knows no SQL but what it reads, and what only time or another release could do to a row.
"""

import secrets
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import text

from storage import jobs, submissions
from storage.accounts import create_account
from storage.database import Database
from storage.errors import JobIsFinal, NotFound
from storage.isolation import clear_isolated, set_isolated
from storage.job_views import StoredImage
from storage.jobs import Claim, Finished, Lease, WorkerName
from storage.possible_crashes import settle_silent
from storage.roles import DatabaseRole
from storage.workers import Worker, declare_dead, heartbeat, write_progress
from tests.fixtures.new_jobs import new_job
from tests.integration.storage.expected_job import Expected

LONG, SILENT_SECONDS = 3600.0, 600.0
MAX_ATTEMPTS = 2
NUM_ACCOUNTS, NUM_PROCESSES = 2, 2
MAX_JOBS = 3

_READ = text(
    """
    SELECT id, state, attempt, CAST(lease_token AS text) AS token, lease_boot_id, quarantined, isolated,
           num_failures, num_crashes, error_code, cancel_requested_at IS NOT NULL AS is_canceled,
           finished_at IS NOT NULL AS is_ended, progress,
           ARRAY(SELECT transition || ' ' || state || ' ' || attempt FROM job_events
                  WHERE job_id = jobs.id ORDER BY job_events.id) AS events,
           ARRAY(SELECT attempt FROM images WHERE job_id = jobs.id) AS images,
           ARRAY(SELECT event FROM webhook_deliveries WHERE job_id = jobs.id) AS deliveries,
           ARRAY(SELECT boot_id FROM possible_crashes WHERE job_id = jobs.id ORDER BY 1) AS possible_crashes
      FROM jobs WHERE account_id = ANY(:accounts)
    """
)
_LEASE_IS_OVER = text(
    "UPDATE jobs SET lease_expires_at = clock_timestamp() - interval '1 second' WHERE id = :id"
)
_IS_PAST = text("UPDATE jobs SET deadline_at = clock_timestamp() - interval '1 second' WHERE id = :id")
_IS_CANCELED = text("UPDATE jobs SET cancel_requested_at = clock_timestamp() WHERE id = :id")
_LOST_LONG_AGO = text("UPDATE possible_crashes SET lost_at = lost_at - interval '1 h' WHERE job_id = :id")
_SEEN_LONG_AGO = text("UPDATE workers SET seen_at = seen_at - interval '1 h' WHERE boot_id = ANY(:boot_ids)")
_END = text(
    """UPDATE jobs SET state = 'canceled', finished_at = clock_timestamp(), next_dispatch_at = NULL,
              dispatch_number = NULL, lease_token = NULL, lease_boot_id = NULL, lease_expires_at = NULL
        WHERE account_id = ANY(:accounts) AND state IN ('queued', 'running')"""
)

places = st.integers(0, MAX_JOBS - 1)
some_places = st.lists(places, min_size=1, max_size=MAX_JOBS, unique=True)
processes_of = st.integers(0, NUM_PROCESSES - 1)
accounts_of = st.integers(0, NUM_ACCOUNTS - 1)
kinds = st.sampled_from(["newest", "newest", "newest", "earlier", "other token", "other attempt"])
"""Of a lease: mostly the newest one of its job, which may be lost by now."""


class JobMachine(RuleBasedStateMachine):
    """`databases` has a pool of each role, and `owner` one of the owner of the tables."""

    def __init__(self, databases: Mapping[DatabaseRole, Database], owner: Database) -> None:
        super().__init__()
        self._api, self._worker, self._sweeper = (databases["api"], databases["worker"], databases["sweeper"])
        self._owner = owner
        tail = secrets.token_hex(4)
        self._accounts = [create_account(owner, f"machine-{tail}") for _ in range(NUM_ACCOUNTS)]
        self._tiers = [f"one-{tail}", f"two-{tail}"]  # of no other test, whose jobs would be claimed too
        self._processes = [
            WorkerName(f"boot-{tail}-{number}", f"w{number}") for number in range(NUM_PROCESSES)
        ]
        self._jobs: dict[str, Expected] = {}

    def _has_jobs(self) -> bool:
        return bool(self._jobs)

    def _has_room(self) -> bool:
        return len(self._jobs) < MAX_JOBS

    def _has_leases(self) -> bool:
        return any(job.leases for job in self._jobs.values())

    def _id(self, place: int) -> str:
        ids = list(self._jobs)
        return ids[place % len(ids)]

    def _lease(self, place: int, kind: str) -> Lease:
        """A lease of one of the jobs that have had any."""
        having = [job for job in self._jobs.values() if job.leases]
        leases = having[place % len(having)].leases
        if kind == "other token":
            return replace(leases[-1], token=str(uuid.uuid4()))
        if kind == "other attempt":
            return replace(leases[-1], attempt=leases[-1].attempt + 1)
        return leases[0] if kind == "earlier" else leases[-1]

    def _leases(self, chosen: Iterable[int], kind: str) -> list[Lease]:
        found = [self._lease(place, kind) for place in chosen]
        return list({lease.job_id: lease for lease in found}.values())

    @precondition(_has_room)
    @rule(
        account=accounts_of,
        tier=st.integers(0, 1),
        lane=st.sampled_from(["interactive", "bulk"]),
        has_webhook=st.booleans(),
    )
    def submit(self, account: int, tier: int, lane: str, has_webhook: bool) -> None:
        """The API inserts a job."""
        made = Expected(self._accounts[account], self._tiers[tier], lane, has_webhook)
        new = new_job(
            made.account,
            tier=made.tier,
            lane=lane,
            webhook_url="https://example.com/hook" if has_webhook else None,
        )
        self._jobs[submissions.create(self._api, new, redispatch_seconds=15).job.id] = made

    @precondition(_has_jobs)
    @rule(
        place=places,
        process=processes_of,
        num_tiers=st.sampled_from([1, 2, 2]),
        takes_quarantined=st.sampled_from([False, True, True]),
    )
    def claim(self, place: int, process: int, num_tiers: int, takes_quarantined: bool) -> None:
        """A worker takes a message, which may be late, doubled or for another tier."""
        job_id, tiers = self._id(place), self._tiers[:num_tiers]
        may_be = self._jobs[job_id].may_be_claimed(tiers, takes_quarantined=takes_quarantined)
        claimed = jobs.claim(
            self._worker,
            job_id,
            tiers=tiers,
            worker=self._processes[process],
            lease_seconds=LONG,
            takes_quarantined=takes_quarantined,
        )
        assert (claimed is not None) == may_be
        self._all_claimed([claimed] if claimed else [], process)

    @precondition(_has_jobs)
    @rule(chosen=some_places, process=processes_of, num_tiers=st.integers(1, 2))
    def claim_each(self, chosen: list[int], process: int, num_tiers: int) -> None:
        """A worker takes several messages at once."""
        tiers, worker = self._tiers[:num_tiers], self._processes[process]
        wanted = list({self._id(place) for place in chosen})
        claimed = jobs.claim_each(self._worker, wanted, tiers=tiers, worker=worker, lease_seconds=LONG)
        may_be = {one for one in wanted if self._jobs[one].may_be_claimed(tiers, takes_quarantined=False)}
        assert claimed.keys() == may_be
        self._all_claimed(claimed.values(), process)

    @precondition(_has_jobs)
    @rule(process=processes_of, num_tiers=st.integers(1, 2), limit=st.integers(1, 3))
    def claim_next(self, process: int, num_tiers: int, limit: int) -> None:
        """A worker asks for bulk work."""
        tiers, worker = self._tiers[:num_tiers], self._processes[process]
        claimed = jobs.claim_next(self._worker, tiers=tiers, worker=worker, lease_seconds=LONG, limit=limit)
        may_be = {
            job_id
            for job_id, job in self._jobs.items()
            if job.lane == "bulk" and job.may_be_claimed(tiers, takes_quarantined=False)
        }
        found = {claim.job.id for claim in claimed}
        assert found <= may_be
        # A job that is flagged while it waits, as no release of ours leaves one, takes a turn for nothing.
        if not any(job.is_canceled and job.state == "queued" for job in self._jobs.values()):
            assert len(found) == min(limit, len(may_be))
        self._all_claimed(claimed, process)

    def _all_claimed(self, claimed: Iterable[Claim], process: int) -> None:
        for claim in claimed:
            self._jobs[claim.job.id].claimed(claim, self._processes[process].boot_id)

    @precondition(_has_leases)
    @rule(place=places, kind=kinds)
    def finish(self, place: int, kind: str) -> None:
        """A worker has stored all images."""
        lease = self._lease(place, kind)
        job = self._jobs[lease.job_id]
        is_done = jobs.finish(self._worker, lease, stored=[_image(lease)], warnings=[], timings={})
        assert is_done == job.holds(lease)
        if is_done:
            self._finished(job)

    @precondition(_has_leases)
    @rule(chosen=some_places, kind=kinds)
    def finish_each(self, chosen: list[int], kind: str) -> None:
        """A worker has stored the images of several jobs."""
        held = self._leases(chosen, kind)
        finished = [Finished(lease, [_image(lease)], [], {}) for lease in held]
        done = jobs.finish_each(self._worker, finished)
        assert done == {lease.job_id for lease in held if self._jobs[lease.job_id].holds(lease)}
        for job_id in done:
            self._finished(self._jobs[job_id])

    def _finished(self, job: Expected) -> None:
        job.ends("finish", "succeeded")
        job.images.append(job.attempt)
        job.progress = 1.0

    @precondition(_has_leases)
    @rule(place=places, kind=kinds)
    def fail(self, place: int, kind: str) -> None:
        """A worker gives a job up."""
        lease = self._lease(place, kind)
        job = self._jobs[lease.job_id]
        was_held = job.holds(lease)
        state = jobs.fail(self._worker, lease, code="invalid", detail="no", retryable=False)
        if was_held:
            job.stops("fail", failed_with="invalid")
        assert state == (job.state if was_held else None)

    @precondition(_has_leases)
    @rule(chosen=some_places, kind=kinds, charged=st.booleans())
    def release(self, chosen: list[int], kind: str, charged: bool) -> None:
        """A worker gives jobs back."""
        held = self._leases(chosen, kind)
        released = jobs.release_each(
            self._worker,
            held,
            code="storage_unavailable",
            detail="no",
            charged=charged,
            max_attempts=MAX_ATTEMPTS,
            backoff_seconds=0,
        )
        expected = {}
        for lease in held:
            job = self._jobs[lease.job_id]
            if job.holds(lease):
                job.num_failures += charged
                is_spent = charged and job.num_failures >= MAX_ATTEMPTS
                job.stops("release", failed_with="storage_unavailable" if is_spent else None)
                expected[lease.job_id] = job.state
        assert released == expected

    @precondition(_has_jobs)
    @rule(place=places, is_own=st.sampled_from([True, True, False]))
    def cancel(self, place: int, is_own: bool) -> None:
        """An account cancels a job: its own, or one of another."""
        job_id = self._id(place)
        job = self._jobs[job_id]
        account = next(one for one in self._accounts if (one == job.account) == is_own)
        try:
            jobs.cancel(self._api, account, job_id)
        except NotFound:
            assert not is_own
            return
        except JobIsFinal:
            assert is_own
            assert job.is_final
            return
        assert is_own
        assert not job.is_final
        if job.state == "queued":
            job.ends("cancel", "canceled")
        else:
            job.is_canceled = True

    @rule()
    def expire(self) -> None:
        """The sweeper looks for deadlines."""
        while jobs.expire(self._sweeper):
            pass
        for job in self._jobs.values():
            if job.state == "queued" and job.is_past:
                job.ends("expire", "expired")

    @rule()
    def reap(self) -> None:
        """The sweeper looks for leases that ran out."""
        while jobs.reap(self._sweeper):
            pass
        for job in self._jobs.values():
            if job.state == "running" and job.is_lease_over:
                job.loses_its_lease()

    @precondition(_has_jobs)
    @rule(process=processes_of, is_known=st.booleans(), chosen=st.lists(places, max_size=2, unique=True))
    def die(self, process: int, is_known: bool, chosen: list[int]) -> None:
        """A supervisor has seen a process end, and may know what was on its device."""
        boot_id, on_device = self._processes[process].boot_id, {self._id(place) for place in chosen}
        declare_dead(self._worker, boot_id=boot_id, on_device=on_device if is_known else None)
        for job_id, job in self._jobs.items():
            is_suspect = not is_known or job_id in on_device
            if job.state == "running" and job.boot_id == boot_id:
                job.loses_its_process(is_suspect=is_suspect, is_only_one=is_known and len(on_device) == 1)
            job.is_settled(boot_id, is_suspect=is_suspect)

    @precondition(_has_leases)
    @rule(chosen=some_places, kind=kinds, process=processes_of)
    def beat(self, chosen: list[int], kind: str, process: int) -> None:
        """A worker renews what it believes to hold."""
        name, held = self._processes[process], self._leases(chosen, kind)
        worker = Worker(name.boot_id, name.boot_id, "here", 1, "cpu:0", tuple(self._tiers), 1, 1, "exact")
        beat = heartbeat(self._worker, worker, [(lease, 0.5) for lease in held], lease_seconds=LONG)
        renewed = [self._jobs[lease.job_id] for lease in held if self._jobs[lease.job_id].holds(lease)]
        lost = {lease.job_id for lease in held if not self._jobs[lease.job_id].holds(lease)}
        assert beat.lost == lost
        assert beat.canceled == {
            lease.job_id
            for lease in held
            if lease.job_id not in lost and self._jobs[lease.job_id].is_canceled
        }
        for job in renewed:
            job.is_lease_over = False
            job.progress = max(job.progress, 0.5)
        for job in self._jobs.values():
            job.heard_of |= job.possible_crashes & {name.boot_id}

    @precondition(_has_leases)
    @rule(chosen=some_places, kind=kinds)
    def progress(self, chosen: list[int], kind: str) -> None:
        """A worker writes how far its jobs are."""
        held = self._leases(chosen, kind)
        write_progress(self._worker, [(lease, 0.25) for lease in held])
        for lease in held:
            job = self._jobs[lease.job_id]
            if job.holds(lease):
                job.progress = max(job.progress, 0.25)

    @precondition(_has_leases)
    @rule(place=places, kind=kinds)
    def isolate(self, place: int, kind: str) -> None:
        """A worker begins an image of a job that runs alone."""
        lease = self._lease(place, kind)
        job = self._jobs[lease.job_id]
        if not job.quarantined:
            return  # no worker does, and the schema refuses it
        is_held = set_isolated(self._worker, lease)
        assert is_held == job.holds(lease)
        if is_held:
            for other in self._jobs.values():
                if other.state == "running" and other.boot_id == job.boot_id:
                    other.isolated = other is job

    @precondition(_has_leases)
    @rule(place=places, kind=kinds)
    def end_isolation(self, place: int, kind: str) -> None:
        """A worker has ended that image."""
        lease = self._lease(place, kind)
        job = self._jobs[lease.job_id]
        is_cleared = clear_isolated(self._worker, lease, progress=0.75)
        assert is_cleared == (job.holds(lease) and job.isolated)
        if is_cleared:
            job.isolated = False
            job.progress = max(job.progress, 0.75)

    @precondition(_has_jobs)
    @rule(place=places)
    def lease_runs_out(self, place: int) -> None:
        """Time passes for a job that runs."""
        job_id = self._id(place)
        if self._jobs[job_id].state == "running":
            self._change(_LEASE_IS_OVER, id=job_id)
            self._jobs[job_id].is_lease_over = True

    @precondition(_has_jobs)
    @rule(place=places)
    def stays_silent(self, place: int) -> None:
        """Time passes for a job whose process may have crashed, and the sweeper looks."""
        job_id = self._id(place)
        job = self._jobs[job_id]
        self._change(_LOST_LONG_AGO, id=job_id)
        self._change(_SEEN_LONG_AGO, boot_ids=[one.boot_id for one in self._processes])
        settle_silent(self._sweeper, silent_seconds=SILENT_SECONDS)
        for boot_id in list(job.possible_crashes):
            job.is_settled(boot_id)
        for other in self._jobs.values():
            other.heard_of -= other.possible_crashes  # their processes were seen an hour before now

    @precondition(_has_jobs)
    @rule(place=places)
    def deadline_passes(self, place: int) -> None:
        """Time passes for a job with a deadline."""
        job_id = self._id(place)
        if not self._jobs[job_id].is_final:
            self._change(_IS_PAST, id=job_id)
            self._jobs[job_id].is_past = True

    @precondition(_has_jobs)
    @rule(place=places)
    def another_release_flags_a_queued_job(self, place: int) -> None:
        """As none of ours does: a job that waits, and whose owner asked for its end."""
        job_id = self._id(place)
        if self._jobs[job_id].state == "queued":
            self._change(_IS_CANCELED, id=job_id)
            self._jobs[job_id].is_canceled = True

    def _change(self, statement: Any, **parameters: Any) -> None:
        with self._owner.transaction() as connection:
            connection.execute(statement, parameters)

    @invariant()
    def rows_are_as_expected(self) -> None:
        """Whatever happened, and to whichever job."""
        if not self._jobs:
            return
        with self._owner.transaction() as connection:
            rows = connection.execute(_READ, {"accounts": self._accounts}).all()
        found = {
            row.id: {name: value for name, value in row._mapping.items() if name != "id"} for row in rows
        }
        assert found == {job_id: job.as_row() for job_id, job in self._jobs.items()}

    def teardown(self) -> None:
        """End what is open, so that no other test finds it."""
        with self._owner.transaction() as connection:
            connection.execute(_END, {"accounts": self._accounts})


def _image(lease: Lease) -> StoredImage:
    key = f"{lease.job_id}/{lease.attempt}/{uuid.uuid4()}"
    return StoredImage(0, 1, key, "ab" * 32, 10, 128, 128)
