"""The estimate is what the profile says of the work ahead, and silent where it says nothing."""

from dataclasses import replace
from typing import Any

import pytest

from catalogue.profile import Profile, PublishedKey, StepCost
from engine.policy.due_times import QUANTUM_STEPS
from engine.policy.simulation import COARSE_STEPS
from storage.workloads import KnownJob, LiveDevice, Workload
from web.estimates.eta import seconds_until_drawn

PROFILE = Profile(
    key=PublishedKey("0123", "a processor", width=128, height=128),
    steps=(StepCost.of_median(4, 1.0), StepCost.of_median(8, 1.5)),
    encode_seconds=0.25,
    decode_seconds=0.75,
    num_guided_rows=2,
)
ENCODE, DECODE = PROFILE.encode_seconds, PROFILE.decode_seconds
ENDS = ENCODE + DECODE
DEVICE = LiveDevice("boot-1", ("sd",), 8, 8, "exact", seconds_since_seen=0.0, profiles={"sd": PROFILE})
SELF_TEST_SIDES = {"sd": 128, "hd": 128}


def job(name: str, **changes: Any) -> KnownJob:
    fields: dict[str, Any] = {
        "id": name,
        "tier": "sd",
        "lane": "interactive",
        "num_images": 1,
        "num_steps": 10,
        "width": 128,
        "height": 128,
        "is_guided": True,
    }
    return KnownJob(**{**fields, **changes})


def running(name: str, progress: float = 0.0, **changes: Any) -> KnownJob:
    return job(name, **{"boot_id": "boot-1", "progress": progress, "seconds_since_progress": 1e6, **changes})


def etas(
    *jobs: KnownJob, devices: tuple[LiveDevice, ...] = (DEVICE,), limits: dict[str, int] | None = None
) -> dict[str, float]:
    active = tuple(one for one in jobs if one.boot_id)
    queued = tuple(one for one in jobs if not one.boot_id)
    work = Workload(devices, active, queued)
    return seconds_until_drawn(work, [one.id for one in jobs], limits or {}, SELF_TEST_SIDES)


def test_a_lone_job_takes_its_steps_at_the_smallest_bucket_and_its_ends() -> None:
    assert etas(job("a")) == {"a": pytest.approx(10 * 1.0 + ENDS)}


def test_a_size_above_the_measured_one_takes_longer_in_proportion_to_its_pixels() -> None:
    large = 4 * (10 * 1.0 + PROFILE.decode_seconds) + PROFILE.encode_seconds
    assert etas(job("a", width=256, height=256)) == {"a": pytest.approx(large)}


def test_jobs_that_fit_into_one_step_batch_share_its_steps() -> None:
    found = etas(job("a"), job("b"), job("c"), job("d"))
    assert found["d"] == pytest.approx(10 * 1.5 + 4 * ENDS)
    assert [found["d"] - found[name] for name in "abc"] == pytest.approx([3 * DECODE, 2 * DECODE, DECODE])


def test_steps_become_cheaper_when_another_member_has_ended() -> None:
    found = etas(*(job(name, num_steps=10 if name == "a" else 4) for name in "abc"))
    together = 3 * ENCODE + 4 * 1.5
    assert [found["b"], found["c"]] == pytest.approx([together + DECODE, together + 2 * DECODE])
    assert found["a"] == pytest.approx(10 * 1.0 + 4 * 0.5 + 3 * ENDS)


def test_what_does_not_fit_under_the_cap_waits_for_the_older() -> None:
    found = etas(*(job(name) for name in "abcde"))
    # The engine decodes for as long as a step takes, then lets the next step run: one comes before "d".
    assert found["c"] == pytest.approx(10 * 1.5 + 5 * ENCODE + 3 * DECODE)
    assert found["d"] == pytest.approx(found["c"] + 1.0 + DECODE)
    assert found["e"] == pytest.approx(10 * 1.5 + 10 * 1.0 + 5 * ENDS)


def test_the_configured_cap_counts_where_it_is_lower() -> None:
    assert etas(job("a"), job("b"), job("c"), limits={"sd": 4})["c"] == pytest.approx(20 + 3 * ENDS)


def test_a_job_without_guidance_takes_one_row_and_one_with_it_as_many_as_the_model_needs() -> None:
    assert etas(*(job(name, is_guided=False) for name in "abcd"))["d"] == pytest.approx(10 + 4 * ENDS)
    device = replace(DEVICE, profiles={"sd": replace(PROFILE, num_guided_rows=1)})
    assert etas(*(job(name) for name in "abcd"), devices=(device,))["d"] == pytest.approx(10 + 4 * ENDS)


def test_a_job_ends_with_its_last_image() -> None:
    assert etas(job("a", num_images=4)) == {"a": pytest.approx(15 + 4 * ENDS)}


def test_a_running_job_takes_what_is_left_of_it() -> None:
    assert etas(running("a", 0.7)) == {"a": pytest.approx(3 * 1.0 + DECODE)}


def test_progress_is_carried_on_from_the_last_heartbeat() -> None:
    old = (replace(DEVICE, seconds_since_seen=1.1),)
    assert etas(running("a", 0.5), devices=old)["a"] == pytest.approx(5 + DECODE - 1.1)
    written = running("a", 0.5, seconds_since_progress=0.3)
    assert etas(written, devices=old)["a"] == pytest.approx(5 + DECODE - 0.3)
    assert etas(running("a", 0.95), devices=old)["a"] == 0.0


def test_the_time_since_progress_was_written_is_shared_with_the_jobs_that_run_now() -> None:
    """In three seconds four jobs run two steps of 1.5 s; alone, the job would have run three of 1 s."""
    old = (replace(DEVICE, seconds_since_seen=3.0),)
    others = [running(name, 0.5, seconds_since_progress=0.0) for name in "bcd"]
    assert etas(running("a", 0.5), *others, devices=old)["a"] == pytest.approx(3 * 1.5 + DECODE)


def test_a_job_waits_for_a_slot_of_its_lane() -> None:
    device = (replace(DEVICE, interactive_slots=1),)
    found = etas(job("a"), job("b"), job("c"), devices=device)
    assert [found[name] for name in "abc"] == [pytest.approx(n * (10 + ENDS)) for n in (1, 2, 3)]


def test_bulk_is_paused_while_interactive_work_fills_the_step_batch_and_rides_along_else() -> None:
    full = etas(running("bulk", lane="bulk"), *(job(name) for name in "abcd"))
    assert full["a"] == pytest.approx(15 + 5 * ENCODE + DECODE)
    assert full["bulk"] == pytest.approx(15 + 10 + 5 * ENDS)
    beside = etas(running("bulk", lane="bulk"), job("a"))
    assert beside["a"] == pytest.approx(10 + 2 * ENCODE + DECODE)
    assert beside["bulk"] == pytest.approx(10 + 2 * ENDS)


QUANTUM = (
    QUANTUM_STEPS * 1.5 + COARSE_STEPS * 1.0
)  # seconds by which one key may be ahead, in turns of so many


def assert_turns(found: dict[str, float], both: float) -> None:
    """The two jobs take turns to the end: the last one ends after all work, the other shortly before."""
    first, last = sorted(found.values())
    assert last == pytest.approx(both)
    assert first >= both - QUANTUM - 1.0 - ENDS


def test_tiers_and_sizes_of_one_device_take_turns() -> None:
    device = replace(DEVICE, tiers=("sd", "hd"), profiles={"sd": PROFILE, "hd": PROFILE})
    long = {"num_steps": 100}
    found = etas(job("a", **long), job("b", tier="hd", **long), devices=(device,))
    assert_turns(found, 2 * (100 + ENDS))
    small = etas(job("a", **long), job("b", width=64, **long))
    half = 100 * 0.5 + ENCODE + DECODE / 2
    assert small["a"] == pytest.approx(half + 100 + ENDS)
    assert small["b"] == pytest.approx(2 * half, abs=QUANTUM)


def test_a_short_job_of_another_size_may_run_within_one_turn() -> None:
    found = etas(job("a"), job("b", width=64, num_steps=100))
    assert found["a"] < 10 + 2 * ENDS + QUANTUM


def test_sizes_of_equal_area_share_no_steps() -> None:
    long = {"num_steps": 100}
    assert_turns(
        etas(job("a", width=64, height=256, **long), job("b", width=256, height=64, **long)), 2 * (100 + ENDS)
    )


def test_two_devices_share_what_waits() -> None:
    one_slot = replace(DEVICE, interactive_slots=1)
    devices = (one_slot, replace(one_slot, boot_id="boot-2"))
    found = etas(*(job(name) for name in "abcd"), devices=devices)
    assert [found[name] for name in "abcd"] == [pytest.approx(n * (10 + ENDS)) for n in (1, 1, 2, 2)]


def test_a_faster_device_takes_the_next_job_sooner() -> None:
    fast = replace(DEVICE, interactive_slots=1)
    slow_profile = replace(PROFILE, steps=(StepCost.of_median(4, 10.0), StepCost.of_median(8, 15.0)))
    slow = replace(fast, boot_id="boot-2", profiles={"sd": slow_profile})
    found = etas(*(job(name) for name in "abcd"), devices=(slow, fast))
    assert found["b"] == pytest.approx(11)
    assert found["d"] == pytest.approx(33)
    assert found["a"] == pytest.approx(101)


def without_profile(device: LiveDevice) -> LiveDevice:
    return replace(device, boot_id="boot-2", profiles={})


@pytest.mark.parametrize(
    "devices",
    [
        (),
        (replace(DEVICE, tiers=("hd",)),),
        (without_profile(DEVICE),),
        (DEVICE, without_profile(DEVICE)),
    ],
    ids=["no device", "none of the tier", "no profile", "one without a profile"],
)
def test_nothing_is_said_where_it_could_not_be_honest(devices: tuple[LiveDevice, ...]) -> None:
    assert etas(job("a"), running("b"), devices=devices) == {}


def test_a_tier_without_a_profile_silences_the_others_of_its_device_while_it_has_work() -> None:
    device = (replace(DEVICE, tiers=("sd", "hd")),)
    assert etas(job("a"), devices=device) == {"a": pytest.approx(10 + ENDS)}
    assert etas(job("a"), job("b", tier="hd"), devices=device) == {}
    assert etas(job("b", tier="hd"), devices=device) == {}


def test_a_generation_has_one_row_after_its_guidance_cutoff() -> None:
    whole, cut = (job(name, num_steps=20) for name in "ab"), job("c", num_steps=20, guidance_cutoff=0.5)
    # Of 3 generations one has 1 row in its last 10 steps: 5 rows still take the larger bucket.
    assert etas(*whole, cut)["c"] == pytest.approx(20 * 1.5 + 3 * ENDS)
    halves = [job(name, num_steps=20, guidance_cutoff=0.5) for name in "abcd"]
    assert etas(*halves)["d"] == pytest.approx(10 * 1.5 + 10 * 1.0 + 4 * ENDS)


def test_rows_that_a_cutoff_frees_go_to_waiting_jobs() -> None:
    jobs = [job(name, num_steps=10, guidance_cutoff=0.0) for name in "abcdefgh"]
    assert etas(*jobs)["h"] == pytest.approx(10 * 1.5 + 8 * ENDS)


def test_a_cutoff_that_ends_within_a_step_guides_that_whole_step() -> None:
    found = etas(*(job(name, num_steps=3, guidance_cutoff=0.5) for name in "abc"))
    assert found["c"] == pytest.approx(2 * 1.5 + 1 * 1.0 + 3 * ENDS)


def test_a_running_job_past_its_cutoff_has_one_row() -> None:
    late = [running(name, 0.5, guidance_cutoff=0.5) for name in "abcd"]
    assert etas(*late)["d"] == pytest.approx(5 * 1.0 + 4 * DECODE)


CACHING = (replace(DEVICE, profiles={"sd": replace(PROFILE, cached_share=0.25)}),)


def test_cached_steps_of_a_lone_job_cost_their_measured_share() -> None:
    num_full = 4 + 5 + 1  # of 20 steps: the first ones, 6, 9, 12, 15 and 18, the last
    found = etas(job("a", num_steps=20, step_cache=3), devices=CACHING)
    assert found["a"] == pytest.approx(num_full * 1.0 + (20 - num_full) * 0.25 + ENDS)


def test_a_step_cache_counts_for_nothing_where_its_gain_was_not_measured() -> None:
    assert etas(job("a", step_cache=3)) == etas(job("a"))


def test_the_steps_that_are_left_of_a_running_job_are_mostly_cached() -> None:
    found = etas(running("a", 0.5, num_steps=20, step_cache=3), devices=CACHING)
    assert found["a"] == pytest.approx(4 * 1.0 + 6 * 0.25 + DECODE)  # 12, 15, 18 and 19 are full


def test_a_member_without_a_cache_makes_every_step_a_full_one() -> None:
    both = etas(job("a", num_steps=20), job("b", num_steps=20, step_cache=3), devices=CACHING)
    assert max(both.values()) == pytest.approx(20 * 1.0 + 2 * ENDS)
    full = etas(*(job(name, num_steps=20) for name in "abcd"), devices=CACHING)["a"]
    mixed = etas(*(job(name, num_steps=20, step_cache=3) for name in "abcd"), devices=CACHING)["a"]
    lone = etas(job("a", num_steps=20, step_cache=3), devices=CACHING)["a"]
    assert lone < mixed < full


def test_nothing_is_said_of_a_job_that_was_not_read_or_whose_worker_is_gone() -> None:
    work = Workload((DEVICE,), (running("lost", boot_id="boot-9"),), (job("a"),))
    assert seconds_until_drawn(work, ["a", "lost", "unread"], {}, {}).keys() == {"a"}


def test_work_is_conserved_whatever_arrives_on_full_step_batches() -> None:
    """Where step batches are full to the end, the last image comes after all row steps at the cap's rate."""
    jobs = [job(f"j{n}", num_steps=30) for n in range(64)]
    found = etas(*jobs)
    assert max(found.values()) == pytest.approx(64 * 30 * 2 * (1.5 / 8) + 64 * ENDS, rel=1e-6)


def test_a_long_queue_on_many_devices_is_played_through() -> None:
    devices = tuple(replace(DEVICE, boot_id=f"boot-{n}") for n in range(30))
    active = [running(f"r{n}", boot_id=f"boot-{n % 30}", num_images=4) for n in range(240)]
    queued = [job(f"q{n}", num_images=4) for n in range(200)]
    found = etas(*active, *queued, devices=devices)
    assert len(found) == 440
    assert all(seconds > 0 for seconds in found.values())


def at_level(determinism: str, **changes: Any) -> LiveDevice:
    return replace(DEVICE, determinism=determinism, **changes)


def strict(name: str, **changes: Any) -> KnownJob:
    return job(name, **{"is_strict": True, **changes})


def test_strict_jobs_of_an_exact_worker_share_step_batches_with_all() -> None:
    assert etas(strict("a"), job("b"), strict("c"), job("d")) == etas(*(job(name) for name in "abcd"))


def test_strict_jobs_run_one_image_after_the_other_where_other_members_change_bits() -> None:
    device = (at_level("within 1/255"),)
    found = etas(*(strict(name) for name in "abc"), devices=device)
    for n, name in enumerate("abc", start=1):
        assert found[name] == pytest.approx(3 * ENCODE + n * (10 + DECODE))
    assert etas(strict("a", num_images=4), devices=device)["a"] == pytest.approx(4 * (10 + ENDS))
    assert etas(running("a", 0.5, is_strict=True, num_images=4), devices=device)["a"] == pytest.approx(
        4 * (5 + DECODE)
    )


def test_strict_jobs_share_four_rows_with_each_other_where_only_the_number_of_rows_shows() -> None:
    found = etas(*(strict(name) for name in "abcd"), devices=(at_level("exact within a bucket"),))
    assert found["b"] == pytest.approx(10 + 4 * ENCODE + 2 * DECODE)
    assert found["d"] == pytest.approx(2 * (10 + 2 * ENDS))


@pytest.mark.parametrize("determinism", ["exact within a bucket", "within 1/255"])
def test_strict_jobs_take_turns_with_all_others_where_they_may_not_share_their_steps(
    determinism: str,
) -> None:
    long = {"num_steps": 100}
    assert_turns(
        etas(strict("a", **long), job("b", **long), devices=(at_level(determinism),)), 2 * (100 + ENDS)
    )


@pytest.mark.parametrize("determinism", ["exact", "exact within a bucket"])
def test_strict_jobs_of_a_shape_that_no_worker_tested_run_alone(determinism: str) -> None:
    jobs = [strict(name, width=64, height=256) for name in "ab"]  # as many pixels as the tested square
    found = etas(*jobs, devices=(at_level(determinism),))
    assert found["a"] == pytest.approx(10 + 2 * ENCODE + DECODE)
    assert found["b"] == pytest.approx(2 * (10 + ENDS))


def test_a_strict_job_that_runs_alone_runs_at_four_rows_whatever_fewer_cost() -> None:
    fine = replace(PROFILE, steps=(StepCost.of_median(2, 0.5), *PROFILE.steps), cached_share=0.25)
    device = (replace(DEVICE, profiles={"sd": fine}),)
    shape = {"width": 64, "height": 256, "num_steps": 20}
    assert etas(job("a", **shape), devices=device)["a"] == pytest.approx(20 * 0.5 + ENDS)
    assert etas(strict("a", **shape), devices=device)["a"] == pytest.approx(20 * 1.0 + ENDS)
    cached = etas(strict("a", step_cache=3, **shape), devices=device)["a"]
    assert cached == pytest.approx(10 * 1.0 + 10 * 0.25 + ENDS)


def test_nothing_is_said_of_a_strict_job_while_its_workers_would_draw_it_in_different_ways() -> None:
    devices = (DEVICE, at_level("within 1/255", boot_id="boot-2"))
    found = etas(
        strict("waits"),
        strict("anywhere alone", width=64),
        running("r1", is_strict=True),
        running("r2", boot_id="boot-2", is_strict=True),
        job("other"),
        devices=devices,
    )
    assert found.keys() == {"anywhere alone", "r1", "r2", "other"}


@pytest.mark.parametrize("determinism", ["not repeatable", "a word of a later version"])
def test_nothing_is_said_of_a_strict_job_on_a_worker_that_refuses_it_or_is_not_understood(
    determinism: str,
) -> None:
    found = etas(strict("a"), running("b", is_strict=True), job("c"), devices=(at_level(determinism),))
    assert found.keys() == {"c"}


def test_nothing_is_said_of_a_strict_job_of_a_tier_that_this_installation_does_not_know() -> None:
    work = Workload((DEVICE,), (), (strict("a"), job("b")))
    assert seconds_until_drawn(work, ["a", "b"], {}, {}).keys() == {"b"}


def test_a_strict_job_blocks_no_other_on_a_worker_that_rejects_it() -> None:
    refusing = at_level("not repeatable", interactive_slots=1)
    kept = at_level("within 1/255", boot_id="boot-2", interactive_slots=1)
    jobs = (strict("a"), strict("b"), job("c"), job("d"))
    found = etas(*jobs, devices=(refusing, kept))
    assert {name: found[name] for name in "cd"} == {
        "c": pytest.approx(10 + ENDS),
        "d": pytest.approx(2 * (10 + ENDS)),
    }
    assert etas(strict("a"), job("c"), devices=(refusing,)) == {"c": pytest.approx(10 + ENDS)}
