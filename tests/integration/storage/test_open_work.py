"""The work of open jobs is read with the profiles that apply to it, under the rights of the API."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from sqlalchemy import text

from catalogue.profile import Profile, PublishedKey, StepCost
from catalogue.step_cache import MAX_STEP_CACHE, is_full_step
from storage import jobs, workers
from storage.database import Database
from storage.jobs import WorkerName
from storage.open_work import DeviceProfile, OpenState, Work, device_profiles, open_work
from storage.profiles import TierProfile, publish
from storage.roles import DatabaseRole
from storage.workers import Worker
from tests.integration.storage.conftest import MakeJob
from web.estimates.device_seconds import device_seconds

PROFILE = Profile(
    key=PublishedKey("0123", "a processor", width=128, height=128),
    steps=(StepCost.of_median(2, 0.5), StepCost.of_median(8, 0.8)),
    encode_seconds=0.1,
    decode_seconds=0.2,
    num_guided_rows=2,
)


@pytest.fixture
def api(databases: Mapping[DatabaseRole, Database]) -> Database:
    return databases["api"]


@pytest.fixture
def tier() -> str:
    """A tier of this test's own."""
    return f"tier-{secrets.token_hex(4)}"


@pytest.fixture
def worker(database: Database, tier: str) -> Iterator[Worker]:
    """A live worker of the tier, with the profile `0123`."""
    boot_id = secrets.token_hex(8)
    live = Worker(boot_id, boot_id, "test", 1, "cpu:0", (tier,), 3, 2, "exact", {tier: "0123"})
    workers.heartbeat(database, live, [], lease_seconds=30)
    yield live
    workers.say_goodbye(database, boot_id)


def seconds_of(api: Database, tier: str, state: OpenState) -> dict[str, float]:
    """As the API exports them, by lane."""
    found = device_seconds(
        open_work(api)[state],
        device_profiles(api, alive_seconds=20),
        {tier: 8},
    )
    return {lane: seconds for (_, lane), seconds in found}


@pytest.mark.usefixtures("worker")
def test_a_known_profile_gives_known_seconds(
    api: Database, database: Database, make_job: MakeJob, tier: str
) -> None:
    publish(database, [TierProfile(tier, "tiny", PROFILE)])
    make_job(tier=tier, num_inference_steps=10, num_images=2)
    make_job(tier=tier, num_inference_steps=5, guidance_scale=1.0, width=256)
    interactive = (2 * 10 * 2 + 2 * 5) * 0.8 / 8 + 3 * 0.1 + (2 + 2) * 0.2
    assert seconds_of(api, tier, "queued") == {"interactive": pytest.approx(interactive), "bulk": 0.0}
    assert seconds_of(api, tier, "running") == {"interactive": 0.0, "bulk": 0.0}


def test_what_is_left_of_a_running_job_shrinks_with_its_progress(
    api: Database, database: Database, make_job: MakeJob, tier: str, worker: Worker
) -> None:
    publish(database, [TierProfile(tier, "tiny", PROFILE)])
    job = make_job(tier=tier, num_inference_steps=10, guidance_cutoff=0.5, step_cache=2, lane="bulk")
    claimed = jobs.claim(
        database, job.id, tiers=[tier], worker=WorkerName(worker.boot_id, "x"), lease_seconds=30
    )
    assert claimed is not None
    assert seconds_of(api, tier, "queued")["bulk"] == 0
    begun = seconds_of(api, tier, "running")["bulk"]
    assert begun == pytest.approx((10 + 5) * 0.1 + 0.1 + 0.2), "without caching known, a cached step is full"
    workers.heartbeat(database, worker, [(claimed.lease, 0.4)], lease_seconds=30)
    assert open_work(api)["running"][tier, "bulk"] == Work(
        encodings=0,
        pixels=128 * 128,
        full_steps=128 * 128 * sum(is_full_step(index, 2, 10) for index in range(4, 10)),
        cached_steps=128 * 128 * sum(not is_full_step(index, 2, 10) for index in range(4, 10)),
        guided_full_steps=128 * 128 * is_full_step(4, 2, 10),
        guided_cached_steps=0,
    )
    jobs.fail(database, claimed.lease, code="nan", detail="x", retryable=False)
    assert seconds_of(api, tier, "running")["bulk"] == 0


def test_a_step_that_has_run_is_not_left(
    api: Database, database: Database, make_job: MakeJob, tier: str, worker: Worker
) -> None:
    job = make_job(tier=tier, num_inference_steps=23, guidance_scale=1.0)
    claimed = jobs.claim(
        database, job.id, tiers=[tier], worker=WorkerName(worker.boot_id, "x"), lease_seconds=30
    )
    assert claimed is not None
    for num_done in range(1, 24):
        workers.heartbeat(database, worker, [(claimed.lease, num_done / 23)], lease_seconds=30)
        left = open_work(api)["running"][tier, "interactive"].full_steps
        assert left == 128 * 128 * (23 - num_done)
    jobs.fail(database, claimed.lease, code="nan", detail="x", retryable=False)


def test_a_fleet_at_zero_still_sees_its_work_by_the_last_profile(
    api: Database, database: Database, make_job: MakeJob, tier: str
) -> None:
    make_job(tier=tier)
    assert seconds_of(api, tier, "queued") == {}, "nobody has ever measured the tier"
    older = replace(PROFILE, key=PROFILE.key._replace(fingerprint="4567"), encode_seconds=9.0)  # type: ignore[union-attr]
    for one in (older, PROFILE):
        publish(database, [TierProfile(tier, "tiny", one)])
    assert device_profiles(api, alive_seconds=20)[tier] == [DeviceProfile(PROFILE, 0)]
    assert seconds_of(api, tier, "queued")["interactive"] > 0


@pytest.mark.usefixtures("worker")
def test_the_profiles_of_live_workers_come_before_the_last_one(
    api: Database, database: Database, tier: str
) -> None:
    newer = replace(PROFILE, key=PROFILE.key._replace(fingerprint="4567"))  # type: ignore[union-attr]
    for one in (PROFILE, newer):
        publish(database, [TierProfile(tier, "tiny", one)])
    assert device_profiles(api, alive_seconds=20)[tier] == [DeviceProfile(PROFILE, 1)]


def test_cached_steps_are_counted_as_the_engine_runs_them(database: Database) -> None:
    cases = [
        (interval, num_steps, first, last)
        for interval in range(1, MAX_STEP_CACHE + 1)
        for num_steps in (1, 4, 5, 6, 17, 24)
        for first in range(0, num_steps + 1, 3)
        for last in range(num_steps + 1)
    ]
    statement = text(
        """SELECT num_cached_steps(a, b, c, d) AS num
             FROM unnest(CAST(:a AS int[]), CAST(:b AS int[]), CAST(:c AS int[]), CAST(:d AS int[]))
                  WITH ORDINALITY AS cases (a, b, c, d, place) ORDER BY place"""
    )
    parameters = dict(zip("abcd", map(list, zip(*cases, strict=True)), strict=True))
    found = [row.num for row in database.execute(statement, parameters)]
    assert found == [
        sum(not is_full_step(index, interval, num_steps) for index in range(first, last))
        for interval, num_steps, first, last in cases
    ]
