"""Profiles are published once for each kind of device, and found by the workers that are of that kind."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, text

from catalogue.profile import Profile, PublishedKey, StepCost
from storage import accounts, jobs, submissions, workers
from storage.database import Database
from storage.jobs import WorkerName
from storage.profiles import TierProfile, learn, publish
from storage.roles import DatabaseRole
from storage.workers import Worker
from storage.workloads import KnownJob, LiveDevice, Workload, workload
from tests.fixtures.new_jobs import new_job
from tests.integration.storage.conftest import MakeJob

StartWorker = Callable[..., Worker]


@pytest.fixture
def tier() -> str:
    """A tier of this test's own."""
    return f"tier-{secrets.token_hex(4)}"


@pytest.fixture
def profile() -> Profile:
    return Profile(
        key=PublishedKey("0123", "a processor, 1 thread", width=128, height=64),
        steps=steps_of({4: 0.25, 8: 0.4}),
        encode_seconds=0.01,
        decode_seconds=0.02,
        num_guided_rows=2,
    )


@pytest.fixture
def start_worker(database: Database, tier: str) -> Iterator[StartWorker]:
    started = []

    def start(**changes: object) -> Worker:
        boot_id = secrets.token_hex(8)
        worker = replace(
            Worker(boot_id, boot_id, "test", 1, "cpu:0", (tier,), 3, 2, "exact", {tier: "0123"}),
            **changes,  # type: ignore[arg-type]
        )
        workers.heartbeat(database, worker, [], lease_seconds=30)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        workers.say_goodbye(database, worker.boot_id)


def steps_of(seconds: dict[int, float]) -> tuple[StepCost, ...]:
    return tuple(StepCost.of_median(*pair) for pair in seconds.items())


def device_of(found: Workload, worker: Worker) -> LiveDevice:
    (device,) = [device for device in found.devices if device.boot_id == worker.boot_id]
    return device


def queued_in(found: Workload, tier: str) -> list[KnownJob]:
    return [job for job in found.queued if job.tier == tier]


def test_a_worker_is_found_with_the_profile_of_its_fingerprint(
    database: Database, profile: Profile, start_worker: StartWorker, tier: str
) -> None:
    other = replace(profile, key=profile.key._replace(fingerprint="4567"), steps=steps_of({4: 9.0}))  # type: ignore[union-attr]
    publish(database, [TierProfile(tier, "tiny", one) for one in (profile, other)])
    worker = start_worker()
    device = device_of(workload(database, alive_seconds=20), worker)
    assert device.profiles == {tier: profile}
    assert (device.tiers, device.num_slots("interactive"), device.num_slots("bulk")) == ((tier,), 3, 2)
    assert device.determinism == "exact"
    assert 0 <= device.seconds_since_seen < 20


def test_a_worker_of_another_kind_is_found_without(
    database: Database, profile: Profile, start_worker: StartWorker, tier: str
) -> None:
    publish(database, [TierProfile(tier, "tiny", profile)])
    others = [start_worker(fingerprints=one) for one in ({tier: "89ab"}, {}, {"else": "0123"})]
    found = workload(database, alive_seconds=20)
    assert [device_of(found, worker).profiles for worker in others] == [{}, {}, {}]


def test_publishing_again_takes_the_place_of_what_was_known(
    database: Database, profile: Profile, start_worker: StartWorker, tier: str
) -> None:
    newer = replace(profile, steps=steps_of({4: 0.5}), cached_share=0.5)
    publish(database, [TierProfile(tier, "tiny", profile)])
    publish(database, [TierProfile(tier, "tiny", newer)])
    worker = start_worker()
    assert device_of(workload(database, alive_seconds=20), worker).profiles == {tier: newer}


def test_a_dead_worker_and_its_jobs_are_not_there(
    database: Database, start_worker: StartWorker, make_job: MakeJob, tier: str
) -> None:
    worker = start_worker()
    make_job(tier=tier)
    workers.say_goodbye(database, worker.boot_id)
    found = workload(database, alive_seconds=20)
    assert worker.boot_id not in [device.boot_id for device in found.devices]
    assert queued_in(found, tier) == []


def test_running_and_waiting_jobs_are_read_in_their_order(
    database: Database, start_worker: StartWorker, make_job: MakeJob, tier: str
) -> None:
    worker = start_worker()
    first = make_job(tier=tier, num_inference_steps=7, guidance_scale=1.0, num_images=3)
    claimed = jobs.claim(
        database, first.id, tiers=[tier], worker=WorkerName(worker.boot_id, "test"), lease_seconds=30
    )
    assert claimed is not None
    workers.heartbeat(database, worker, [(claimed.lease, 0.5)], lease_seconds=30)
    early, late = make_job(tier=tier, width=64, strict=True), make_job(tier=tier)
    bulk = make_job(tier=tier, lane="bulk")
    found = workload(database, alive_seconds=20)
    (running,) = [job for job in found.running if job.tier == tier]
    assert (running.id, running.boot_id, running.progress) == (first.id, worker.boot_id, 0.5)
    assert (running.num_steps, running.is_guided, running.num_images) == (7, False, 3)
    assert 0 <= running.seconds_since_progress < 20
    assert [job.id for job in queued_in(found, tier)] == [early.id, late.id, bulk.id]
    assert [(job.width, job.height, job.is_strict) for job in queued_in(found, tier)[:2]] == [
        (64, 128, True),
        (128, 128, False),
    ]
    assert found.cut_off == frozenset()


def test_bulk_jobs_wait_in_the_order_of_their_claims_accounts_in_turn(
    databases: dict[DatabaseRole, Database], database: Database, start_worker: StartWorker, tier: str
) -> None:
    start_worker()
    owners = [accounts.create_account(database, name) for name in ("large", "small")]

    def make(owner: str, **changes: object) -> str:
        new = new_job(owner, tier=tier, lane="bulk", **changes)
        return submissions.create(database, new, redispatch_seconds=15)[0].id

    large, small = [make(owners[0]) for _ in range(5)], [make(owners[1]) for _ in range(2)]
    later = make(owners[1])
    with database.transaction() as connection:
        statement = text("UPDATE jobs SET next_dispatch_at = 'infinity' WHERE id = :id")
        connection.execute(statement, {"id": later})
    found = workload(databases["api"], alive_seconds=20)
    ids = [job.id for job in queued_in(found, tier)]
    assert ids == [large[0], small[0], large[1], small[1], *large[2:]]
    worker = WorkerName("boot", "test")
    claims = jobs.claim_next(database, tiers=[tier], worker=worker, lease_seconds=30, limit=4)
    assert {claim.job.id for claim in claims} == set(ids[:4])
    assert found.cut_off == frozenset()


def test_a_long_bulk_queue_is_cut_off_and_says_so(
    database: Database,
    start_worker: StartWorker,
    make_job: MakeJob,
    tier: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("storage.workloads.MAX_QUEUED", 2)
    start_worker()
    made = [make_job(tier=tier, lane="bulk") for _ in range(4)]
    found = workload(database, alive_seconds=20)
    assert [job.id for job in queued_in(found, tier)] == [job.id for job in made[:2]]
    assert (tier, "bulk") in found.cut_off


def test_a_long_queue_is_cut_off_and_says_so(
    database: Database,
    start_worker: StartWorker,
    make_job: MakeJob,
    tier: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("storage.workloads.MAX_QUEUED", 2)
    start_worker()
    made = [make_job(tier=tier) for _ in range(3)]
    found = workload(database, alive_seconds=20)
    assert [job.id for job in queued_in(found, tier)] == [job.id for job in made[:2]]
    assert (tier, "interactive") in found.cut_off


def test_what_a_worker_learned_is_found_and_adds_to_what_was_learned_before(
    database: Database, profile: Profile, start_worker: StartWorker, tier: str
) -> None:
    worker = start_worker()
    first = replace(profile, learned_max_rows=12, cached_share=0.5)
    learn(database, TierProfile(tier, "tiny", first))
    assert device_of(workload(database, alive_seconds=20), worker).profiles == {tier: first}
    more = replace(first, steps=steps_of({8: 0.5, 12: 0.6}), cached_share=1.0, learned_max_rows=16)
    learn(database, TierProfile(tier, "tiny", more))
    (found,) = device_of(workload(database, alive_seconds=20), worker).profiles.values()
    assert found.steps == steps_of({4: 0.25, 8: 0.5, 12: 0.6})
    assert (found.cached_share, found.max_rows) == (0.5, 16), "what was not seen stays"
    learn(database, TierProfile(tier, "tiny", replace(first, steps=steps_of({4: 0.3}))))
    (found,) = device_of(workload(database, alive_seconds=20), worker).profiles.values()
    assert (found.knee_rows, found.is_worth_batching) == (12, True), "the knee is that of all steps"


class WhileOpen:
    """A database that, before it commits, waits until another session waits for its transaction."""

    def __init__(self, database: Database, begin: Callable[[], None]) -> None:
        self._database = database
        self._begin = begin

    def run(self, work: Callable[[Connection], Any]) -> None:
        with self._database.transaction() as connection:
            work(connection)
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            self._begin()
            deadline = time.monotonic() + 60
            while not self._is_waited_for(pid):
                assert time.monotonic() < deadline, "nobody waits"

    def _is_waited_for(self, pid: int) -> bool:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))"
        with self._database.transaction() as connection:
            return bool(connection.execute(text(waiting), {"pid": pid}).scalar_one())


def test_of_two_workers_that_learn_at_once_for_the_first_time_neither_is_lost(
    database: Database, profile: Profile, start_worker: StartWorker, tier: str
) -> None:
    worker = start_worker()
    few, many = (
        TierProfile(tier, "tiny", replace(profile, learned_max_rows=8, steps=(step,)))
        for step in profile.steps
    )
    other = threading.Thread(target=learn, args=(database, many))
    learn(WhileOpen(database, other.start), few)  # type: ignore[arg-type]
    other.join(20)
    (found,) = device_of(workload(database, alive_seconds=20), worker).profiles.values()
    assert found.steps == profile.steps


def test_what_was_measured_takes_the_place_of_what_was_learned_and_never_the_other_way_round(
    database: Database, profile: Profile, start_worker: StartWorker, tier: str
) -> None:
    worker = start_worker()
    learned = TierProfile(tier, "tiny", replace(profile, learned_max_rows=8, steps=steps_of({12: 9.0})))
    learn(database, learned)
    publish(database, [TierProfile(tier, "tiny", profile)])
    assert device_of(workload(database, alive_seconds=20), worker).profiles == {tier: profile}
    learn(database, learned)
    assert device_of(workload(database, alive_seconds=20), worker).profiles == {tier: profile}


def test_a_job_that_leaves_work_out_is_read_with_what_it_leaves_out(
    database: Database, start_worker: StartWorker, make_job: MakeJob, tier: str
) -> None:
    start_worker()
    make_job(tier=tier, guidance_cutoff=0.5, step_cache=3)
    (found,) = queued_in(workload(database, alive_seconds=20), tier)
    assert (found.guidance_cutoff, found.step_cache) == (0.5, 3)
