"""Profiles are published once for each kind of device, and found by the workers that are of that kind."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from storage import jobs, workers
from storage.database import Database
from storage.jobs import WorkerName
from storage.profiles import StoredProfile, learn, publish
from storage.workers import Worker
from storage.workloads import KnownJob, LiveDevice, Workload, workload
from tests.integration.storage.conftest import MakeJob

StartWorker = Callable[..., Worker]


@pytest.fixture
def tier() -> str:
    """A tier of this test's own."""
    return f"tier-{secrets.token_hex(4)}"


@pytest.fixture
def profile(tier: str) -> StoredProfile:
    return StoredProfile(
        tier=tier,
        fingerprint="0123",
        model="tiny",
        device_kind="a processor, 1 thread",
        width=128,
        height=64,
        steps=((4, 0.25), (8, 0.4)),
        encode_seconds=0.01,
        decode_seconds=0.02,
        num_guided_rows=2,
        knee_rows=8,
        max_rows=8,
        batching_pays=True,
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


def device_of(found: Workload, worker: Worker) -> LiveDevice:
    (device,) = [device for device in found.devices if device.boot_id == worker.boot_id]
    return device


def queued_in(found: Workload, tier: str) -> list[KnownJob]:
    return [job for job in found.queued if job.tier == tier]


def test_a_worker_is_found_with_the_profile_of_its_fingerprint(
    database: Database, profile: StoredProfile, start_worker: StartWorker, tier: str
) -> None:
    publish(database, [profile, replace(profile, fingerprint="4567", max_rows=4)])
    worker = start_worker()
    device = device_of(workload(database, alive_seconds=20), worker)
    assert device.profiles == {tier: profile}
    assert (device.tiers, device.num_slots("interactive"), device.num_slots("bulk")) == ((tier,), 3, 2)
    assert 0 <= device.seconds_since_seen < 20


def test_a_worker_of_another_kind_is_found_without(
    database: Database, profile: StoredProfile, start_worker: StartWorker, tier: str
) -> None:
    publish(database, [profile])
    others = [start_worker(fingerprints=one) for one in ({tier: "89ab"}, {}, {"else": "0123"})]
    found = workload(database, alive_seconds=20)
    assert [device_of(found, worker).profiles for worker in others] == [{}, {}, {}]


def test_publishing_again_takes_the_place_of_what_was_known(
    database: Database, profile: StoredProfile, start_worker: StartWorker, tier: str
) -> None:
    newer = replace(profile, steps=((4, 0.5),), max_rows=4, batching_pays=False)
    publish(database, [profile])
    publish(database, [newer])
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


def test_running_and_rung_jobs_are_told_in_their_order_and_those_without_a_bell_are_not(
    database: Database, start_worker: StartWorker, make_job: MakeJob, tier: str
) -> None:
    worker = start_worker()
    first = make_job(tier=tier, num_inference_steps=7, guidance_scale=1.0, num_images=3)
    claimed = jobs.claim(
        database, first.id, tiers=[tier], worker=WorkerName(worker.boot_id, "test"), lease_seconds=30
    )
    assert claimed is not None
    workers.heartbeat(database, worker, [(claimed.lease, 0.5)], lease_seconds=30)
    early, late = make_job(tier=tier, width=64), make_job(tier=tier)
    make_job(tier=tier, lane="bulk")  # has no bell yet
    found = workload(database, alive_seconds=20)
    (running,) = [job for job in found.running if job.tier == tier]
    assert (running.id, running.boot_id, running.progress) == (first.id, worker.boot_id, 0.5)
    assert (running.num_steps, running.is_guided, running.num_images) == (7, False, 3)
    assert 0 <= running.seconds_running < 20
    assert [job.id for job in queued_in(found, tier)] == [early.id, late.id]
    assert [job.num_pixels for job in queued_in(found, tier)] == [64 * 128, 128 * 128]
    assert found.cut_off == frozenset()


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
    database: Database, profile: StoredProfile, start_worker: StartWorker, tier: str
) -> None:
    worker = start_worker()
    first = replace(profile, is_learned=True, steps=((4, 0.25), (8, 0.4)), shallow_share=0.5)
    learn(database, first)
    assert device_of(workload(database, alive_seconds=20), worker).profiles == {tier: first}
    learn(database, replace(first, steps=((8, 0.5), (12, 0.6)), shallow_share=1.0, max_rows=16))
    (found,) = device_of(workload(database, alive_seconds=20), worker).profiles.values()
    assert found.steps == ((4, 0.25), (8, 0.5), (12, 0.6))
    assert (found.shallow_share, found.max_rows) == (0.5, 16), "what was not seen stays"


def test_what_was_measured_takes_the_place_of_what_was_learned_and_never_the_other_way_round(
    database: Database, profile: StoredProfile, start_worker: StartWorker, tier: str
) -> None:
    worker = start_worker()
    learned = replace(profile, is_learned=True, steps=((12, 9.0),))
    learn(database, learned)
    publish(database, [profile])
    assert device_of(workload(database, alive_seconds=20), worker).profiles == {tier: profile}
    learn(database, learned)
    assert device_of(workload(database, alive_seconds=20), worker).profiles == {tier: profile}


def test_a_job_that_leaves_work_out_is_told_with_what_it_leaves_out(
    database: Database, start_worker: StartWorker, make_job: MakeJob, tier: str
) -> None:
    start_worker()
    make_job(tier=tier, guidance_cutoff=0.5, step_cache=3)
    (found,) = queued_in(workload(database, alive_seconds=20), tier)
    assert (found.guidance_cutoff, found.step_cache) == (0.5, 3)
