"""The device seconds of the open jobs are those of their profiles, and agree with a simulated drain."""

import random
from dataclasses import replace

import pytest

from catalogue.profile import Profile, PublishedKey, StepCost
from catalogue.step_cache import is_full_step
from storage.open_work import DeviceProfile, Work
from storage.workloads import KnownJob, LiveDevice, Workload
from web.estimates.device_seconds import device_seconds, seconds_on
from web.estimates.eta import seconds_until_drawn

PROFILE = Profile(
    key=PublishedKey("0123", "a processor", width=100, height=100),
    steps=(StepCost.of_median(2, 1.0), StepCost.of_median(8, 2.0), StepCost.of_median(16, 6.0)),
    encode_seconds=0.25,
    decode_seconds=0.75,
    num_guided_rows=2,
    cached_share=0.5,
)
WORK = Work(
    encodings=3,
    pixels=30_000,
    full_steps=100_000,
    cached_steps=40_000,
    guided_full_steps=50_000,
    guided_cached_steps=20_000,
)
STEPS = 10 + 0.5 * 4 + 5 + 0.5 * 2  # of the profile's size


def test_work_takes_the_seconds_of_full_step_batches_at_the_cap() -> None:
    assert PROFILE.max_rows == 8
    assert seconds_on(WORK, PROFILE, 64) == pytest.approx(STEPS * 2.0 / 8 + 3 * 0.25 + 3 * 0.75)
    assert seconds_on(WORK, PROFILE, 2) == pytest.approx(STEPS * 1.0 / 2 + 3 * 0.25 + 3 * 0.75)


def test_a_model_that_takes_guidance_as_an_input_pays_nothing_for_it() -> None:
    alone = replace(PROFILE, num_guided_rows=1)
    assert seconds_on(WORK, alone, 64) == pytest.approx((10 + 0.5 * 4) * 2.0 / 8 + 3 * 0.25 + 3 * 0.75)


def test_a_tier_without_a_profile_is_absent_and_one_without_work_is_zero() -> None:
    found = dict(device_seconds({("hd", "bulk"): WORK}, {"sd": [DeviceProfile(PROFILE, 0)]}, {"sd": 8}))
    assert found == {("sd", "interactive"): 0.0, ("sd", "bulk"): 0.0}


def test_devices_of_several_kinds_share_the_work_in_proportion_to_their_speed() -> None:
    twice_as_slow = replace(
        PROFILE,
        steps=tuple(StepCost.of_median(one.num_rows, 2 * one.seconds) for one in PROFILE.steps),
        encode_seconds=0.5,
        decode_seconds=1.5,
    )
    profiles = [DeviceProfile(PROFILE, 2), DeviceProfile(twice_as_slow, 1)]
    found = dict(device_seconds({("sd", "bulk"): WORK}, {"sd": profiles}, {"sd": 64}))
    # Two at full and one at half speed are 2.5 of the fast ones.
    assert found["sd", "bulk"] / 3 == pytest.approx(seconds_on(WORK, PROFILE, 64) / 2.5)


@pytest.mark.parametrize("seed", range(5))
def test_they_agree_with_the_simulated_drain_of_one_device(seed: int) -> None:
    """Within an eighth: the last step batches are not full, and a step batch holds whole generations."""
    draw = random.Random(seed)
    jobs = [
        KnownJob(
            str(number),
            "sd",
            "bulk",
            num_images=draw.choice((1, 1, 2, 4)),
            num_steps=draw.randint(4, 40),
            width=100,
            height=100,
            is_guided=draw.random() < 0.7,
            guidance_cutoff=draw.choice((1.0, 0.5)),
            step_cache=draw.choice((1, 1, 3)),
        )
        for number in range(150)
    ]
    device = LiveDevice("boot", ("sd",), 8, 16, "exact", 0.0, {"sd": PROFILE})
    ends = seconds_until_drawn(Workload((device,), (), tuple(jobs)), [job.id for job in jobs], {}, {})
    work = {("sd", "bulk"): _sum([_work_of(job) for job in jobs])}
    found = dict(device_seconds(work, {"sd": [DeviceProfile(PROFILE, 1)]}, {"sd": 64}))
    assert found["sd", "bulk"] == pytest.approx(max(ends.values()), rel=0.125)


def _work_of(job: KnownJob) -> Work:
    num_guided = -(-job.num_steps * job.guidance_cutoff // 1) if job.is_guided else 0
    pixels = job.num_pixels * job.num_images
    full = [is_full_step(index, job.step_cache, job.num_steps) for index in range(job.num_steps)]
    num_guided_full = sum(full[: int(num_guided)])
    return Work(
        encodings=job.num_images,
        pixels=pixels,
        full_steps=pixels * sum(full),
        cached_steps=pixels * (len(full) - sum(full)),
        guided_full_steps=pixels * num_guided_full,
        guided_cached_steps=pixels * (int(num_guided) - num_guided_full),
    )


def _sum(all_work: list[Work]) -> Work:
    names = Work.__dataclass_fields__
    return Work(**{name: sum(getattr(one, name) for one in all_work) for name in names})
