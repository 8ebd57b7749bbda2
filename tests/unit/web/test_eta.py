"""The estimate is what the profile says of the work ahead, and silent where it says nothing."""

from dataclasses import replace
from typing import Any

import pytest

from catalogue.parameters import MAX_STEP_CACHE
from engine.partial_forwards.step_cache import StepCache
from storage.profiles import StoredProfile
from storage.workloads import KnownJob, LiveDevice, Workload
from web.estimates.eta import seconds_until_drawn
from web.estimates.foreseen import is_full

PROFILE = StoredProfile(
    tier="sd",
    fingerprint="0123",
    model="tiny",
    device_kind="a processor",
    width=128,
    height=128,
    steps=((4, 1.0), (8, 1.5)),
    encode_seconds=0.25,
    decode_seconds=0.75,
    num_guided_rows=2,
    knee_rows=8,
    max_rows=8,
    is_worth_batching=True,
)
ENDS = PROFILE.encode_seconds + PROFILE.decode_seconds
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
    assert found == dict.fromkeys("abcd", pytest.approx(10 * 1.5 + 4 * ENDS))


def test_steps_become_cheaper_when_a_mate_has_ended() -> None:
    found = etas(*(job(name, num_steps=10 if name == "a" else 4) for name in "abc"))
    together = 4 * 1.5 + 4 * (ENDS / 10 + 2 * ENDS / 4)
    assert found["b"] == found["c"] == pytest.approx(together)
    assert found["a"] == pytest.approx(together + 6 * 1.0 + 6 * ENDS / 10)


def test_what_does_not_fit_under_the_cap_waits_for_the_older() -> None:
    found = etas(*(job(name) for name in "abcde"))
    first = 10 * 1.5 + 4 * ENDS
    assert found["d"] == pytest.approx(first)
    assert found["e"] == pytest.approx(first + 10 * 1.0 + ENDS)


def test_the_configured_cap_counts_where_it_is_lower() -> None:
    assert etas(job("a"), job("b"), job("c"), limits={"sd": 4})["c"] == pytest.approx(20 + 3 * ENDS)


def test_a_job_without_guidance_takes_one_row_and_one_with_it_as_many_as_the_model_needs() -> None:
    assert etas(*(job(name, is_guided=False) for name in "abcd"))["d"] == pytest.approx(10 + 4 * ENDS)
    device = replace(DEVICE, profiles={"sd": replace(PROFILE, num_guided_rows=1)})
    assert etas(*(job(name) for name in "abcd"), devices=(device,))["d"] == pytest.approx(10 + 4 * ENDS)


def test_a_job_ends_with_its_last_image() -> None:
    assert etas(job("a", num_images=4)) == {"a": pytest.approx(15 + 4 * ENDS)}


def test_a_running_job_takes_what_is_left_of_it() -> None:
    assert etas(running("a", 0.75)) == {"a": pytest.approx((10 + ENDS) / 4)}


def test_progress_is_carried_on_from_the_last_heartbeat() -> None:
    old = (replace(DEVICE, seconds_since_seen=1.1),)
    assert etas(running("a", 0.5), devices=old)["a"] == pytest.approx(5.5 - 1.1)
    assert etas(running("a", 0.5, seconds_since_progress=0.3), devices=old)["a"] == pytest.approx(5.5 - 0.3)
    assert etas(running("a", 0.95), devices=old)["a"] == 0.0


def test_a_job_waits_for_a_slot_of_its_lane() -> None:
    device = (replace(DEVICE, interactive_slots=1),)
    found = etas(job("a"), job("b"), job("c"), devices=device)
    assert [found[name] for name in "abc"] == [pytest.approx(n * (10 + ENDS)) for n in (1, 2, 3)]


def test_bulk_is_paused_while_interactive_work_fills_the_step_batch_and_rides_along_else() -> None:
    full = etas(running("bulk", lane="bulk"), *(job(name) for name in "abcd"))
    assert full["a"] == pytest.approx(15 + 4 * ENDS)
    assert full["bulk"] == pytest.approx(full["a"] + 10 + ENDS)
    beside = etas(running("bulk", lane="bulk"), job("a"))
    assert beside["bulk"] == beside["a"] == pytest.approx(10 + 2 * ENDS)


def test_tiers_and_sizes_of_one_device_take_turns() -> None:
    device = replace(DEVICE, tiers=("sd", "hd"), profiles={"sd": PROFILE, "hd": replace(PROFILE, tier="hd")})
    both = 2 * (10 + ENDS)
    assert etas(job("a"), job("b", tier="hd"), devices=(device,)) == dict.fromkeys("ab", pytest.approx(both))
    small = etas(job("a"), job("b", width=64))
    half = 10 * 0.5 + 0.25 + 0.75 / 2
    assert small["b"] == pytest.approx(2 * half)
    assert small["a"] == pytest.approx(half + 10 + ENDS)


def test_sizes_of_equal_area_share_no_steps() -> None:
    found = etas(job("a", width=64, height=256), job("b", width=256, height=64))
    assert found == dict.fromkeys("ab", pytest.approx(2 * (10 + ENDS)))


def test_two_devices_share_what_waits() -> None:
    one_slot = replace(DEVICE, interactive_slots=1)
    devices = (one_slot, replace(one_slot, boot_id="boot-2"))
    found = etas(*(job(name) for name in "abcd"), devices=devices)
    assert [found[name] for name in "abcd"] == [pytest.approx(n * (10 + ENDS)) for n in (1, 1, 2, 2)]


def test_a_faster_device_takes_the_next_job_sooner() -> None:
    fast = replace(DEVICE, interactive_slots=1)
    slow_profile = replace(PROFILE, steps=((4, 10.0), (8, 15.0)))
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


def test_rows_that_a_cutoff_frees_are_given_to_who_waits() -> None:
    jobs = [job(name, num_steps=10, guidance_cutoff=0.0) for name in "abcdefgh"]
    assert etas(*jobs)["h"] == pytest.approx(10 * 1.5 + 8 * ENDS)


def test_a_cutoff_that_ends_within_a_step_guides_that_whole_step() -> None:
    found = etas(*(job(name, num_steps=3, guidance_cutoff=0.5) for name in "abc"))
    assert found["c"] == pytest.approx(2 * 1.5 + 1 * 1.0 + 3 * ENDS)


def test_a_running_job_past_its_cutoff_has_one_row() -> None:
    late = [running(name, 0.5, guidance_cutoff=0.5) for name in "abcd"]
    assert etas(*late)["a"] == pytest.approx(5 * 1.0 + 4 * ENDS / 2)


CACHING = (replace(DEVICE, profiles={"sd": replace(PROFILE, cached_share=0.25)}),)


def test_shallow_steps_of_a_lone_job_cost_their_measured_share() -> None:
    num_full = 4 + 5 + 1  # of 20 steps: the first ones, 6, 9, 12, 15 and 18, the last
    found = etas(job("a", num_steps=20, step_cache=3), devices=CACHING)
    assert found["a"] == pytest.approx(num_full * 1.0 + (20 - num_full) * 0.25 + ENDS)


def test_a_step_cache_counts_for_nothing_where_its_gain_was_not_measured() -> None:
    assert etas(job("a", step_cache=3)) == etas(job("a"))


def test_the_steps_that_are_left_of_a_running_job_are_mostly_shallow() -> None:
    found = etas(running("a", 0.5, num_steps=20, step_cache=3), devices=CACHING)
    assert found["a"] == pytest.approx(4 * 1.0 + 6 * 0.25 + ENDS / 2)  # 12, 15, 18 and 19 are full


def test_a_mate_without_a_cache_keeps_the_deep_part_in_every_step() -> None:
    both = etas(job("a", num_steps=20), job("b", num_steps=20, step_cache=3), devices=CACHING)
    assert both["a"] == pytest.approx(20 * 1.0 + 2 * ENDS)
    full = etas(*(job(name, num_steps=20) for name in "abcd"), devices=CACHING)["a"]
    mixed = etas(*(job(name, num_steps=20, step_cache=3) for name in "abcd"), devices=CACHING)["a"]
    lone = etas(job("a", num_steps=20, step_cache=3), devices=CACHING)["a"]
    assert lone < mixed < full


def test_the_steps_that_count_as_full_are_the_engines() -> None:
    for interval in range(1, MAX_STEP_CACHE + 1):
        for num_steps in range(1, 60):
            cache = StepCache(interval, num_steps)
            assert [is_full(index, interval, num_steps) for index in range(num_steps)] == [
                cache.is_full(index) for index in range(num_steps)
            ]


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


def promising(determinism: str, **changes: Any) -> LiveDevice:
    return replace(DEVICE, determinism=determinism, **changes)


def strict(name: str, **changes: Any) -> KnownJob:
    return job(name, **{"strict": True, **changes})


def test_strict_jobs_of_an_exact_worker_have_everybody_for_mates() -> None:
    assert etas(strict("a"), job("b"), strict("c"), job("d")) == etas(*(job(name) for name in "abcd"))


def test_strict_jobs_run_one_image_after_the_other_where_mates_show() -> None:
    device = (promising("within 1/255"),)
    found = etas(*(strict(name) for name in "abc"), devices=device)
    assert [found[name] for name in "abc"] == [pytest.approx(n * (10 + ENDS)) for n in (1, 2, 3)]
    assert etas(strict("a", num_images=4), devices=device)["a"] == pytest.approx(4 * (10 + ENDS))
    assert etas(running("a", 0.5, strict=True, num_images=4), devices=device)["a"] == pytest.approx(
        4 * (10 + ENDS) / 2
    )


def test_strict_jobs_share_four_rows_with_each_other_where_only_the_number_of_rows_shows() -> None:
    found = etas(*(strict(name) for name in "abcd"), devices=(promising("exact within a bucket"),))
    assert found["a"] == found["b"] == pytest.approx(10 + 2 * ENDS)
    assert found["c"] == found["d"] == pytest.approx(2 * (10 + 2 * ENDS))


@pytest.mark.parametrize("determinism", ["exact within a bucket", "within 1/255"])
def test_strict_jobs_take_turns_with_all_others_where_they_may_not_share_their_steps(
    determinism: str,
) -> None:
    found = etas(strict("a"), job("b"), devices=(promising(determinism),))
    assert found["a"] == found["b"] == pytest.approx(2 * (10 + ENDS))


@pytest.mark.parametrize("determinism", ["exact", "exact within a bucket"])
def test_strict_jobs_of_a_shape_that_no_worker_tested_run_alone(determinism: str) -> None:
    jobs = [strict(name, width=64, height=256) for name in "ab"]  # as many pixels as the tested square
    found = etas(*jobs, devices=(promising(determinism),))
    assert [found[name] for name in "ab"] == [pytest.approx(n * (10 + ENDS)) for n in (1, 2)]


def test_a_strict_job_that_runs_alone_runs_at_four_rows_whatever_fewer_cost() -> None:
    fine = replace(PROFILE, steps=((2, 0.5), *PROFILE.steps), cached_share=0.25)
    device = (replace(DEVICE, profiles={"sd": fine}),)
    shape = {"width": 64, "height": 256, "num_steps": 20}
    assert etas(job("a", **shape), devices=device)["a"] == pytest.approx(20 * 0.5 + ENDS)
    assert etas(strict("a", **shape), devices=device)["a"] == pytest.approx(20 * 1.0 + ENDS)
    cached = etas(strict("a", step_cache=3, **shape), devices=device)["a"]
    assert cached == pytest.approx(10 * 1.0 + 10 * 0.25 + ENDS)


def test_nothing_is_said_of_a_strict_job_while_its_workers_would_draw_it_in_different_ways() -> None:
    devices = (DEVICE, promising("within 1/255", boot_id="boot-2"))
    found = etas(
        strict("waits"),
        strict("anywhere alone", width=64),
        running("r1", strict=True),
        running("r2", boot_id="boot-2", strict=True),
        job("other"),
        devices=devices,
    )
    assert found.keys() == {"anywhere alone", "r1", "r2", "other"}


@pytest.mark.parametrize("determinism", ["not repeatable", "a word of a later version"])
def test_nothing_is_said_of_a_strict_job_on_a_worker_that_refuses_it_or_is_not_understood(
    determinism: str,
) -> None:
    found = etas(strict("a"), running("b", strict=True), job("c"), devices=(promising(determinism),))
    assert found.keys() == {"c"}


def test_nothing_is_said_of_a_strict_job_of_a_tier_that_this_installation_does_not_know() -> None:
    work = Workload((DEVICE,), (), (strict("a"), job("b")))
    assert seconds_until_drawn(work, ["a", "b"], {}, {}).keys() == {"b"}


def test_a_strict_job_keeps_nobody_from_a_worker_that_refuses_it() -> None:
    refusing = promising("not repeatable", interactive_slots=1)
    kept = promising("within 1/255", boot_id="boot-2", interactive_slots=1)
    jobs = (strict("a"), strict("b"), job("c"), job("d"))
    found = etas(*jobs, devices=(refusing, kept))
    assert {name: found[name] for name in "cd"} == {
        "c": pytest.approx(10 + ENDS),
        "d": pytest.approx(2 * (10 + ENDS)),
    }
    assert etas(strict("a"), job("c"), devices=(refusing,)) == {"c": pytest.approx(10 + ENDS)}
