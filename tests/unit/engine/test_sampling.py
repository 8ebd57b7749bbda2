"""Coefficient tables and vectorised updates against diffusers' own `step()`, bit for bit."""

import random
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from engine.errors import RequestInvalid
from engine.request import SCHEDULERS, SchedulerSpec, Spacing
from engine.sampling import EXPANDED, CoefficientTables, FlowSigmas, guide
from tests.unit.engine.trajectories import (
    Walker,
    diffusers_scheduler,
    diffusers_trajectory,
    even_sigmas,
    walk,
    walk_to_the_end,
)

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = [1, 2, 4, 20, 50]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIGS: dict[str, dict[str, Any]] = {
    "epsilon": {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    # Latents are never clipped, whatever their configuration says; the reference is told not to.
    "epsilon-that-says-clip": {**BETAS, "timestep_spacing": "linspace", "clip_sample": True},
    "v-zero-snr": {
        **BETAS,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "clip_sample": False,
    },
    "v": {**BETAS, "prediction_type": "v_prediction", "clip_sample": False},
    "sample": {**BETAS, "prediction_type": "sample", "clip_sample_range": 0.8, "steps_offset": 1},
}
DIFFUSION = {
    **{name: spec for name, spec in SCHEDULERS.items() if spec.name in set(EXPANDED) - {"flow_match_euler"}},
    "ddim-eta": SchedulerSpec("ddim", eta=0.7),
    "ddim-eta-1": SchedulerSpec("ddim", eta=1.0),
}
SPECS = {
    f"{name}-{spacing}": replace(spec, spacing=spacing)
    for name, spec in DIFFUSION.items()
    for spacing in ((None, *get_args(Spacing)) if spec.name != "lcm" else (None,))
}


def is_impossible(config: str, spec: SchedulerSpec) -> bool:
    """What diffusers cannot do either: a NaN, or an error."""
    return (config == "sample" and spec.name == "euler_ancestral") or (
        # The last of all timesteps has no signal: DDIM's direction is the root of a negative rounding error.
        config == "v-zero-snr" and spec.eta == 1 and spec.spacing in (None, "trailing", "linspace")
    )


def tables_of(config: str) -> CoefficientTables:
    return CoefficientTables(DDIMScheduler(**CONFIGS[config]))


WAYS = [(config, name) for config in CONFIGS for name in SPECS if not is_impossible(config, SPECS[name])]


@pytest.mark.parametrize(("config", "name"), WAYS)
def test_rows_at_any_step_equal_diffusers_step_bit_for_bit(config: str, name: str) -> None:
    """1, 2, 4, 20 and 50 steps side by side in one batch, each row the trajectory of its own scheduler."""
    spec, tables = SPECS[name], tables_of(config)
    walkers = [Walker(tables.table(spec, num_steps), seed) for seed, num_steps in enumerate(STEPS)]
    walk_to_the_end(walkers)
    for walker, num_steps in zip(walkers, STEPS, strict=True):
        scheduler = diffusers_scheduler(DDIMScheduler(**CONFIGS[config]).config, spec)
        theirs = diffusers_trajectory(scheduler, spec, num_steps, walker.seed, torch.float32)
        assert torch.equal(walker.table.timesteps, scheduler.timesteps.float())
        assert len(walker.trajectory) == len(theirs)
        for step, (our_latents, their_latents) in enumerate(zip(walker.trajectory, theirs, strict=True)):
            assert torch.isfinite(their_latents).all()
            same = torch.equal(our_latents, their_latents)
            assert same, f"{num_steps} steps: latents differ after step {step}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.parametrize("config", ["epsilon", "epsilon-that-says-clip", "v", "sample"])
def test_half_precision_equals_diffusers_own_on_cpu(config: str, name: str, dtype: torch.dtype) -> None:
    """`(B, 1, 1, 1)` coefficients must not promote half-precision rows; the bound is 0 on this device."""
    spec, tables = DIFFUSION[name], tables_of(config)
    if is_impossible(config, spec):
        with pytest.raises(RequestInvalid):
            tables.table(spec, 4)
        return
    walkers = [Walker(tables.table(spec, num_steps), seed, dtype) for seed, num_steps in enumerate(STEPS)]
    walk_to_the_end(walkers)
    for walker, num_steps in zip(walkers, STEPS, strict=True):
        scheduler = diffusers_scheduler(DDIMScheduler(**CONFIGS[config]).config, spec)
        theirs = diffusers_trajectory(scheduler, spec, num_steps, walker.seed, dtype)
        assert walker.latents.dtype == theirs[-1].dtype == dtype
        assert all(map(torch.equal, walker.trajectory, theirs))


@pytest.mark.parametrize("seed", range(6))
def test_trajectory_does_not_depend_on_who_walks_beside(seed: int) -> None:
    """Other schedulers, step counts, seeds and histories join and leave at random: the bits stay."""
    rng = random.Random(seed)
    asked = [
        (config, rng.choice(list(SPECS)), rng.randint(1, 50), rng.randrange(1000))
        for config in CONFIGS
        for _ in range(6)
    ]
    asked = [one for one in asked if not is_impossible(one[0], SPECS[one[1]])]
    tables = {config: tables_of(config) for config in CONFIGS}
    crowd = [
        Walker(tables[config].table(SPECS[name], steps), number) for config, name, steps, number in asked
    ]
    while left := [one for one in crowd if not one.is_done]:
        walk(rng.sample(left, rng.randint(1, len(left))))
    for walker, (config, name, steps, number) in zip(crowd, asked, strict=True):
        alone = Walker(tables[config].table(SPECS[name], steps), number)
        walk_to_the_end([alone])
        assert all(map(torch.equal, walker.trajectory, alone.trajectory)), (config, name, steps)


FLOWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shifted": {"shift": 3.0},
    "by resolution": {"use_dynamic_shifting": True},
    "karras": {"use_karras_sigmas": True},
}


@pytest.mark.parametrize("flow_sigmas", ["own", "even"])
@pytest.mark.parametrize("flow", FLOWS)
def test_flow_matching_rows_equal_diffusers_step_bit_for_bit(flow: str, flow_sigmas: FlowSigmas) -> None:
    spec, own = SchedulerSpec("flow_match_euler"), FlowMatchEulerDiscreteScheduler(**FLOWS[flow])
    tables, config = CoefficientTables(own, flow_sigmas), own.config
    walkers = [Walker(tables.table(spec, steps, num_patches=300 + steps), steps) for steps in STEPS]
    walk_to_the_end(walkers)
    slope = (config.max_shift - config.base_shift) / (4096 - 256)
    for walker, steps in zip(walkers, STEPS, strict=True):
        extra = {
            "sigmas": even_sigmas(steps) if flow_sigmas == "even" else None,
            "mu": (300 + steps) * slope + config.base_shift - slope * 256,
        }
        scheduler = diffusers_scheduler(config, spec)
        theirs = diffusers_trajectory(scheduler, spec, steps, steps, torch.float32, **extra)
        assert torch.equal(walker.table.timesteps, scheduler.timesteps)
        assert len(walker.trajectory) == steps
        assert all(map(torch.equal, walker.trajectory, theirs))


@pytest.mark.parametrize("shift", [None, 2.0])
def test_dpm_solver_along_a_flow_equals_diffusers_step_bit_for_bit(shift: float | None) -> None:
    """From a flow-matching Euler's configuration, and from that of a model which came with the solver."""
    spec = SchedulerSpec("dpmpp_2m", shift=shift)
    own = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for published in (
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        DPMSolverMultistepScheduler(**own, flow_shift=3.0),
    ):
        tables, config = CoefficientTables(published, "own"), published.config
        walkers = [Walker(tables.table(spec, steps), steps) for steps in STEPS]
        walk_to_the_end(walkers)
        for walker, steps in zip(walkers, STEPS, strict=True):
            scheduler = diffusers_scheduler(config, spec, **own, flow_shift=shift or 3.0)
            theirs = diffusers_trajectory(scheduler, spec, steps, steps, torch.float32)
            assert torch.equal(walker.table.timesteps, scheduler.timesteps.float())
            assert all(map(torch.equal, walker.trajectory, theirs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["flow_match_euler", "dpmpp_2m"])
def test_half_precision_along_a_flow_equals_diffusers_own_on_cpu(name: Any, dtype: torch.dtype) -> None:
    spec, published = SchedulerSpec(name), FlowMatchEulerDiscreteScheduler(shift=3.0)
    own = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    tables, config = CoefficientTables(published, "own"), published.config
    for steps in STEPS:
        walker = Walker(tables.table(spec, steps), steps, dtype)
        walk_to_the_end([walker])
        scheduler = diffusers_scheduler(config, spec, **(own if name == "dpmpp_2m" else {}))
        theirs = diffusers_trajectory(scheduler, spec, steps, steps, dtype)
        assert walker.latents.dtype == dtype
        assert all(map(torch.equal, walker.trajectory, theirs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guidance_by_row_equals_guidance_by_a_python_number(dtype: torch.dtype) -> None:
    conditional, unconditional = torch.randn(2, 3, 4, 5, 5).to(dtype).unbind(0)
    scales = [1.5, 4.0, 7.3]
    guided = guide(conditional, unconditional, torch.tensor(scales))
    for row, scale in enumerate(scales):
        expected = unconditional[row] + scale * (conditional[row] - unconditional[row])
        assert torch.equal(guided[row], expected)
