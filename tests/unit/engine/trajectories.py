"""Latents step by step: by diffusers' own schedulers one at a time, and by our tables side by side."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from torch import Tensor

from engine.company import Company
from engine.request import SchedulerSpec
from engine.sampling import CoefficientTable

SHAPE = (1, 4, 6, 5)
CLASSES: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
    "flow_match_euler": FlowMatchEulerDiscreteScheduler,
}


def fake_output(model_input: Tensor, timestep: Tensor) -> Tensor:
    """Some elementwise function of what a model would see: equal bits in, equal bits out."""
    return (model_input * 0.7 + torch.sin(model_input * 3.1 + timestep.to(model_input.dtype) * 0.01)) * 0.9


def diffusers_scheduler(config: Any, spec: SchedulerSpec, **changes: Any) -> Any:
    """What a user of diffusers would put into a pipeline whose own scheduler has this configuration."""
    changes |= {"timestep_spacing": spec.spacing} if spec.spacing else {}
    changes |= {"use_karras_sigmas": True} if spec.karras else {}
    changes |= {"clip_sample": False} if spec.name in ("ddim", "lcm") else {}
    return CLASSES[spec.name].from_config(config, **changes)


def diffusers_trajectory(
    scheduler: Any, spec: SchedulerSpec, num_steps: int, seed: int, dtype: torch.dtype, **extra: Any
) -> list[Tensor]:
    """Latents after every step, the scheduler driven as the pipelines do; `extra` is for `set_timesteps`."""
    scheduler.set_timesteps(num_steps, **extra)
    if len(scheduler.timesteps) > 1 and scheduler.timesteps[0] == scheduler.timesteps[1]:
        scheduler.set_begin_index(0)  # else it begins with the second of two equal ones, and ends in an error
    generator = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn(SHAPE, generator=generator, dtype=dtype)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    more: dict[str, Any] = {"generator": generator} if spec.name != "flow_match_euler" else {}
    more |= {"eta": spec.eta} if spec.name == "ddim" else {}
    trajectory = []
    for timestep in scheduler.timesteps:
        model_input = latents
        if spec.name != "flow_match_euler":
            model_input = scheduler.scale_model_input(latents, timestep)
        output = fake_output(model_input, timestep)
        latents = scheduler.step(output, timestep, latents, **more).prev_sample
        trajectory.append(latents)
    return trajectory


@dataclass(eq=False)
class Walker:
    """A row that keeps where it has been."""

    table: CoefficientTable
    seed: int
    dtype: torch.dtype = torch.float32
    step_index: int = 0
    trajectory: list[Tensor] = field(default_factory=list)
    company: Company = field(init=False)
    place: int = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        latents = torch.randn(SHAPE, generator=self.generator, dtype=self.dtype)
        Company([self], latents * self.table.init_noise_sigma)

    @property
    def latents(self) -> Tensor:
        return self.company.latents_of(self)

    @property
    def is_done(self) -> bool:
        return self.step_index == self.table.num_steps

    def draw_noise(self, out: Tensor) -> None:
        out.normal_(generator=self.generator)


def walk(walkers: list[Walker], layout: torch.memory_format = torch.contiguous_format) -> None:
    """One step of all of them in one batch, the model's output laid out so in memory."""
    company = Company.of(walkers)
    latents = company.latents
    timesteps = torch.stack([one.table.timesteps[one.step_index] for one in walkers])
    step = company.sampler_step(walkers)
    output = fake_output(step.scale(latents), timesteps.view(-1, 1, 1, 1)).contiguous(memory_format=layout)
    before = [tensor.clone() for tensor in (output, latents)]
    following, history = step.advance(walkers, output, latents, company.history)
    assert torch.equal(before[0], output), "the model output was changed"
    assert torch.equal(before[1], latents), "the latents were changed, and a failed step needs them again"
    company.commit(following, history)
    for one in walkers:
        one.step_index += 1
        one.trajectory.append(one.latents)


def walk_to_the_end(walkers: list[Walker]) -> None:
    """All steps of all of them; a row leaves when its own are done."""
    while active := [one for one in walkers if not one.is_done]:
        walk(active)


def even_sigmas(num_steps: int) -> np.ndarray:
    """What Flux's pipeline hands over instead of its scheduler's own."""
    return np.linspace(1.0, 1 / num_steps, num_steps)
