"""Coefficient tables and vectorised updates against diffusers' own `step()`, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from engine.errors import LoadError, RequestInvalid
from engine.request import SchedulerSpec
from engine.sampling import CoefficientTables, FlowSigmas, advance, guide, scale_model_input

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIGS: dict[str, dict[str, Any]] = {
    "epsilon-leading": {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "epsilon-linspace-clipped": {**BETAS, "timestep_spacing": "linspace", "clip_sample": True},
    "v-trailing-zero-snr": {
        **BETAS,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "clip_sample": False,
    },
    "v-leading": {**BETAS, "prediction_type": "v_prediction", "clip_sample": False},
}
SPECS = {
    "ddim": SchedulerSpec("ddim"),
    "ddim-eta": SchedulerSpec("ddim", eta=0.7),
    "ddim-linspace": SchedulerSpec("ddim", spacing="linspace"),
    "euler": SchedulerSpec("euler"),
    "euler-leading": SchedulerSpec("euler", spacing="leading"),
    "euler-trailing": SchedulerSpec("euler", spacing="trailing"),
    "euler-linspace": SchedulerSpec("euler", spacing="linspace"),
    "euler-karras": SchedulerSpec("euler", karras=True),
}
SHAPE = (1, 4, 6, 5)


def fake_output(model_input: Tensor, timestep: Tensor) -> Tensor:
    """Some elementwise function of what a model would see: equal bits in, equal bits out."""
    return (model_input * 0.7 + torch.sin(model_input * 3.1 + timestep.to(model_input.dtype) * 0.01)) * 0.9


def diffusers_trajectory(
    config: dict[str, Any], spec: SchedulerSpec, num_steps: int, seed: int, dtype: torch.dtype
) -> list[Tensor]:
    """Latents after every step of diffusers' own scheduler, driven as `StableDiffusionPipeline` does."""
    scheduler_class = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler}[spec.name]
    changes: dict[str, Any] = {"timestep_spacing": spec.spacing} if spec.spacing else {}
    changes |= {"use_karras_sigmas": True} if spec.karras else {}
    scheduler = scheduler_class.from_config(DDIMScheduler(**config).config, **changes)
    scheduler.set_timesteps(num_steps)
    generator = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn(SHAPE, generator=generator, dtype=dtype) * scheduler.init_noise_sigma
    extra = {"eta": spec.eta} if spec.name == "ddim" else {}
    trajectory = []
    for timestep in scheduler.timesteps:
        output = fake_output(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(output, timestep, latents, generator=generator, **extra).prev_sample
        trajectory.append(latents)
    return trajectory


def our_trajectories(
    config: dict[str, Any], spec: SchedulerSpec, steps: list[int], dtype: torch.dtype
) -> list[list[Tensor]]:
    """The same for several step counts in one batch: row i leaves when its steps are done."""
    tables = CoefficientTables(DDIMScheduler(**config).config)
    rows: list[dict[str, Any]] = []
    for seed, num_steps in enumerate(steps):
        generator = torch.Generator("cpu").manual_seed(seed)
        table = tables.table(spec, num_steps)
        latents = torch.randn(SHAPE, generator=generator, dtype=dtype) * table.init_noise_sigma
        rows.append({"table": table, "generator": generator, "latents": latents, "trajectory": []})
    while active := [row for row in rows if len(row["trajectory"]) < row["table"].num_steps]:
        index = [len(row["trajectory"]) for row in active]
        latents = torch.cat([row["latents"] for row in active])
        pairs = list(zip(active, index, strict=True))
        divisors = torch.stack([row["table"].input_divisors[i] for row, i in pairs])
        timesteps = torch.stack([row["table"].timesteps[i] for row, i in pairs])
        coefficients = torch.stack([row["table"].coefficients[i] for row, i in pairs])
        output = fake_output(scale_model_input(latents, divisors), timesteps.view(-1, 1, 1, 1))
        update = active[0]["table"].update
        noise = None
        if update.is_stochastic:
            drawn = [torch.randn(SHAPE, generator=row["generator"], dtype=dtype) for row in active]
            noise = torch.cat(drawn)
        latents = advance(update, output, latents, coefficients, noise)
        for row, row_latents in zip(active, latents.split(1), strict=True):
            row["latents"] = row_latents
            row["trajectory"].append(row_latents)
    return [row["trajectory"] for row in rows]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("config", CONFIGS)
def test_rows_at_any_step_equal_diffusers_step_bit_for_bit(config: str, spec: str) -> None:
    """1, 2, 4, 20 and 50 steps side by side in one batch, each row the trajectory of its own scheduler."""
    steps = [1, 2, 4, 20, 50]
    ours = our_trajectories(CONFIGS[config], SPECS[spec], steps, torch.float32)
    for seed, (num_steps, trajectory) in enumerate(zip(steps, ours, strict=True)):
        theirs = diffusers_trajectory(CONFIGS[config], SPECS[spec], num_steps, seed, torch.float32)
        assert len(trajectory) == len(theirs)
        for step, (our_latents, their_latents) in enumerate(zip(trajectory, theirs, strict=True)):
            same = torch.equal(our_latents, their_latents)
            assert same, f"{num_steps} steps: latents differ after step {step}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spec", ["ddim", "euler"])
@pytest.mark.parametrize("config", ["epsilon-leading", "v-leading"])
def test_half_precision_stays_near_diffusers_own(config: str, spec: str, dtype: torch.dtype) -> None:
    """`(B, 1, 1, 1)` coefficients must not promote half-precision rows; the rest is rounding."""
    ours = our_trajectories(CONFIGS[config], SPECS[spec], [4, 20], dtype)
    for seed, num_steps in enumerate([4, 20]):
        theirs = diffusers_trajectory(CONFIGS[config], SPECS[spec], num_steps, seed, dtype)[-1]
        assert ours[seed][-1].dtype == dtype
        difference = (ours[seed][-1].float() - theirs.float()).abs().max() / theirs.float().abs().max()
        assert difference <= 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guidance_by_row_equals_guidance_by_a_python_number(dtype: torch.dtype) -> None:
    conditional, unconditional = torch.randn(2, 3, 4, 5, 5).to(dtype).unbind(0)
    scales = [1.5, 4.0, 7.3]
    guided = guide(conditional, unconditional, torch.tensor(scales))
    for row, scale in enumerate(scales):
        expected = unconditional[row] + scale * (conditional[row] - unconditional[row])
        assert torch.equal(guided[row], expected)


def test_table_is_expanded_once_for_a_scheduler_and_a_number_of_steps() -> None:
    tables = CoefficientTables(DDIMScheduler(**CONFIGS["v-leading"]).config)
    assert tables.table(SchedulerSpec(), 20) is tables.table(SchedulerSpec(), 20)
    assert tables.table(SchedulerSpec(), 20) is not tables.table(SchedulerSpec("euler"), 20)


def test_what_no_scheduler_can_do_is_refused() -> None:
    tables = CoefficientTables(DDIMScheduler(**CONFIGS["v-trailing-zero-snr"]).config)
    with pytest.raises(RequestInvalid, match="1001 is above 1000"):
        tables.table(SchedulerSpec(), 1001)
    with pytest.raises(RequestInvalid, match="no finite steps"):
        tables.table(SchedulerSpec(eta=1.0), 6)
    with pytest.raises(LoadError, match="prediction_type"):
        CoefficientTables({"prediction_type": "sample"})


FLOWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shifted": {"shift": 3.0},
    "by resolution": {"use_dynamic_shifting": True},
    "karras": {"use_karras_sigmas": True},
}


@pytest.mark.parametrize("flow_sigmas", ["own", "even"])
@pytest.mark.parametrize("flow", FLOWS)
def test_flow_matching_rows_equal_diffusers_step_bit_for_bit(flow: str, flow_sigmas: FlowSigmas) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**FLOWS[flow])
    tables = CoefficientTables(scheduler.config, flow_sigmas)
    for num_steps in (1, 2, 4, 20, 50):
        num_patches = 300 + num_steps
        table = tables.table(SchedulerSpec("flow_match_euler"), num_steps, num_patches)
        config = scheduler.config
        slope = (config.max_shift - config.base_shift) / (4096 - 256)
        scheduler.set_timesteps(
            num_steps,
            sigmas=np.linspace(1.0, 1 / num_steps, num_steps) if flow_sigmas == "even" else None,
            mu=num_patches * slope + config.base_shift - slope * 256,
        )
        assert torch.equal(table.timesteps, scheduler.timesteps)
        ours = theirs = torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(num_steps))
        for step, timestep in enumerate(scheduler.timesteps):
            theirs = scheduler.step(fake_output(theirs, timestep), timestep, theirs).prev_sample
            ours = advance(
                table.update,
                fake_output(scale_model_input(ours, table.input_divisors[step : step + 1]), timestep),
                ours,
                table.coefficients[step : step + 1],
                None,
            )
            assert torch.equal(ours, theirs)


def test_a_scheduler_of_another_kind_of_model_is_refused() -> None:
    flow = CoefficientTables(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config, "even")
    with pytest.raises(RequestInvalid, match="euler is not for this kind"):
        flow.table(SchedulerSpec("euler"), 4)
    with pytest.raises(RequestInvalid, match="follows from the resolution"):
        flow.table(SchedulerSpec("flow_match_euler", shift=2.0), 4)
    with pytest.raises(RequestInvalid, match="not for this kind"):
        CoefficientTables(DDIMScheduler().config).table(SchedulerSpec("flow_match_euler"), 4)
    with pytest.raises(LoadError, match="draws noise"):
        CoefficientTables(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True).config, "own")
