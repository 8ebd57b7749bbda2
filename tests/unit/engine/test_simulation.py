"""A simulated device ends every generation when the engine does: both run the one policy."""

import math
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from catalogue.profile import Profile
from engine.engine import Engine
from engine.loading.load import LoadedModels
from engine.policy.candidate import BatchKey
from engine.policy.policy import Policy
from engine.policy.simulation import COARSE_STEPS, SimulatedDevice, SimulatedGeneration
from engine.request import GenerationRequest
from tasks.profiles import measure_tier
from tests.unit.engine.fakes import Costly, CostlyWalk, FakeCachingModel, SetClock

MAX_ROWS = 16


def step_seconds(num_rows: int) -> float:
    return 0.5 + num_rows / 8


def costly(clock: SetClock) -> FakeCachingModel:
    denoiser = Costly(clock, step_seconds)
    model = FakeCachingModel(denoiser=denoiser)
    model.partial_forward = CostlyWalk(denoiser, cached_share=0.25)
    model.vae.on_decode = lambda: clock.advance(0.25)
    return model


@dataclass
class ProfileCosts:
    """The costs of a profile of square images of 128 pixels, in proportion to the pixels of a key."""

    profile: Profile

    def step_seconds(self, _: BatchKey, num_rows: int) -> float:
        return self.profile.step_seconds(num_rows)

    def cached_share(self, _: BatchKey) -> float:
        return self.profile.cached_share

    def encode_seconds(self, _: BatchKey) -> float:
        return self.profile.encode_seconds

    def decode_seconds(self, _: BatchKey) -> float:
        return self.profile.decode_seconds


def measured() -> Profile:
    clock = SetClock()
    loaded = LoadedModels({"m": costly(clock)}, {"m": {16384: MAX_ROWS}}, "exact")
    tier: Any = SimpleNamespace(model="m", default_width=128, default_height=128, max_pixels=16384)
    return measure_tier(tier, loaded, scheduler="ddim", seconds=0, clock=clock)


def mixed_load(seed: int) -> list[tuple[float, GenerationRequest]]:
    rng, now, load = random.Random(seed), 0.0, []
    for number in range(24):
        now += rng.choice([0.0, 0.0, rng.expovariate(0.3)])
        request = GenerationRequest(
            "m",
            "x",
            *rng.choice([(128, 128), (64, 128)]),
            num_inference_steps=rng.choice([4, 12, 20, 30]),
            guidance_scale=rng.choice([1.0, 4.0]),
            guidance_cutoff=rng.choice([1.0, 1.0, 0.4]),
            step_cache=rng.choice([1, 1, 3]),
            seed=number,
            lane=rng.choice(["interactive", "interactive", "bulk"]),
            account=rng.choice("ab"),
            seconds_left=rng.choice([None, None, 20.0, 100.0]),
        )
        load.append((now, request))
    return load


def engine_ends(load: list[tuple[float, GenerationRequest]], profile: Profile) -> list[float]:
    clock = SetClock()
    clock.now = 0.0
    engine = Engine(
        {"m": costly(clock)},
        {"m": {16384: MAX_ROWS}},
        determinism="exact",
        clock=clock,
        step_seconds=lambda _, num_rows: profile.step_seconds(num_rows),
    )
    ends: dict[int, float] = {}
    waiting = list(enumerate(load))
    while waiting or not engine.is_idle:
        while waiting and waiting[0][1][0] <= clock.now:
            index, (at, request) = waiting.pop(0)

            def note(future: Any, index: int = index) -> None:
                ends[index] = math.inf if future.exception() else clock.now

            now, clock.now = clock.now, at  # it came while the engine worked, on another thread
            engine.submit(request).future.add_done_callback(note)
            clock.now = now
        if engine.is_idle:
            clock.now = max(clock.now, waiting[0][1][0])
        else:
            engine.tick()
    return [ends[index] for index in range(len(load))]


def simulated_ends(
    load: list[tuple[float, GenerationRequest]], profile: Profile, *, steps_per_choice: int = 1
) -> list[float]:
    costs = ProfileCosts(profile)
    policy = Policy(lambda _: MAX_ROWS, step_seconds=costs.step_seconds)
    device = SimulatedDevice(policy, costs, steps_per_choice=steps_per_choice)
    generations = []
    for at, request in load:
        steps = request.num_inference_steps
        one = SimulatedGeneration(
            BatchKey("m", request.height // 8, request.width // 8),
            steps,
            2,
            math.ceil(request.guidance_cutoff * steps) if request.guidance_scale > 1 else 0,
            request.step_cache,
            request.lane,
            request.account,
            submitted_at=at,
            deadline_at=None if request.seconds_left is None else at + request.seconds_left,
        )
        generations.append(one)
        device.submit(one, at)
    while device.advance():
        pass
    return [one.ended_at for one in generations]


@pytest.mark.parametrize("seed", range(3))
def test_every_generation_ends_when_it_does_in_the_engine(seed: int) -> None:
    profile, load = measured(), mixed_load(seed)
    ends = engine_ends(load, profile)
    assert simulated_ends(load, profile) == pytest.approx(ends, abs=1e-6)
    assert math.inf in ends, "some miss their deadline and are dropped"


@pytest.mark.parametrize("seed", range(3))
def test_a_coarse_simulation_is_nearly_the_same(seed: int) -> None:
    profile = measured()
    load = [(at, request) for at, request in mixed_load(seed) if request.seconds_left is None]
    fine = simulated_ends(load, profile)
    coarse = simulated_ends(load, profile, steps_per_choice=COARSE_STEPS)
    assert max(coarse) == pytest.approx(max(fine), rel=0.02)
    late = sorted(abs(one - other) for one, other in zip(coarse, fine, strict=True))
    assert late[len(late) // 2] <= COARSE_STEPS * step_seconds(MAX_ROWS)


def test_a_device_with_nothing_to_do_skips_to_the_next_arrival() -> None:
    profile = measured()
    device = SimulatedDevice(
        Policy(lambda _: 8, step_seconds=ProfileCosts(profile).step_seconds), ProfileCosts(profile)
    )
    late = SimulatedGeneration(BatchKey("m", 16, 16), 4, submitted_at=1000.0)
    device.submit(late, 1000.0)
    assert device.advance() == [late]
    assert late.ended_at == pytest.approx(1000 + 4 * step_seconds(4) + 0.25)
    assert device.advance() == []
