"""What a step's update costs: diffusers' own `step()`, one request at a time, against ours for all of them.

`python -m bench.samplers` prints, for the shipped model's latents at 128 pixels and for those of Stable
Diffusion at 512, a line a sampler and the geometric mean. Eight requests of different step counts walk side
by side, from random model outputs; the arms take the same step one after the other, in turns, in inference
mode. It measures no model. Our arm forms its step batch, which stays the same from step to step; beside it
the cost where another one is formed at every step, and that of the noise, which both arms draw.
"""

import statistics
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

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
from engine.native_generation import NativeGeneration
from engine.policy import BatchKey
from engine.request import GenerationRequest, SchedulerName, SchedulerSpec
from engine.sampling import EXPANDED, CoefficientTables, advance, scale_model_input

P = ParamSpec("P")
SHIPPED = (1, 4, 16, 16)  # the shipped model at 128 pixels
LARGE = (1, 4, 64, 64)  # Stable Diffusion at 512
STEPS = (12, 20, 30, 50, 12, 20, 30, 50)  # of eight requests
NUM_TICKS = 12  # the last of them is the last step of two requests
SEEDS = (1, 2, 3)
REASON = "the operations that bit equality keeps apart and the noise, on tensors that lie ready"
CLASSES: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
    "flow_match_euler": FlowMatchEulerDiscreteScheduler,
}


@dataclass(frozen=True)
class Cost:
    """One sampler and seed, in microseconds a request and step."""

    theirs: float
    ours: float
    reformed: float  # ours where the step batch is another one at every step
    least: float  # the operations of ours and the noise alone, on tensors that lie ready
    noise: float  # of all: drawn from the request's own generator; 0 where none is

    @property
    def gain(self) -> float:
        """How many times cheaper ours is, noise included."""
        return self.theirs / self.ours

    @property
    def gain_least(self) -> float:
        """The same if nothing but operations and noise cost anything: the limit."""
        return self.theirs / self.least

    @property
    def gain_reformed(self) -> float:
        """The same where the step batch is another one at every step."""
        return self.theirs / self.reformed

    @property
    def gain_without_noise(self) -> float:
        """The same for the arithmetic alone."""
        return (self.theirs - self.noise) / (self.ours - self.noise)


class Theirs:
    """Eight requests by one sampler, a scheduler each."""

    def __init__(self, name: SchedulerName, seed: int, shape: tuple[int, ...]) -> None:
        self._is_scaled = name != "flow_match_euler"  # its pipelines do not call `scale_model_input`
        config = scheduler_for(name).config
        self._schedulers, self.latents = [], []
        self._extra: list[dict[str, torch.Generator]] = []
        for index, num_steps in enumerate(STEPS):
            scheduler = CLASSES[name].from_config(config)
            scheduler.set_timesteps(num_steps)
            self._schedulers.append(scheduler)
            generator = torch.Generator("cpu").manual_seed(seed + index)
            noise = torch.randn(shape, generator=generator)
            self.latents.append(noise * getattr(scheduler, "init_noise_sigma", 1.0))
            draws_none = name in ("ddim", "dpmpp_2m", "flow_match_euler")
            self._extra.append({} if draws_none else {"generator": generator})

    def step(self, tick: int, outputs: Sequence[Tensor]) -> None:
        """Eight calls of `step()`, and of `scale_model_input` where the pipeline has one."""
        for index, scheduler in enumerate(self._schedulers):
            timestep, latents = scheduler.timesteps[tick], self.latents[index]
            if self._is_scaled:
                scheduler.scale_model_input(latents, timestep)
            step = scheduler.step(outputs[index], timestep, latents, **self._extra[index], return_dict=False)
            self.latents[index] = step[0]


class Ours:
    """The same requests as generations, a table each."""

    def __init__(self, name: SchedulerName, seed: int, shape: tuple[int, ...]) -> None:
        tables = CoefficientTables(scheduler_for(name), "own" if name == "flow_match_euler" else None)
        key = BatchKey("m", shape[2], shape[3], is_pinned=False)
        self.generations = []
        for index, num_steps in enumerate(STEPS):
            request = GenerationRequest("m", "", 512, 512, num_steps, 1.0, seed + index)
            table = tables.table(SchedulerSpec(name), num_steps)
            generation = NativeGeneration(request, key, table, is_guided=False, submitted_at=0.0, num_ticks=0)
            noise = torch.randn(shape, generator=generation.generator)
            Company([generation], noise * table.init_noise_sigma)
            self.generations.append(generation)
        self.is_stochastic = self.generations[0].table.updates[0].is_stochastic

    def step(self, members: Sequence[NativeGeneration], outputs: Tensor) -> None:
        """One step of all of them as `Runner.step` takes it: formed, scaled, advanced, committed."""
        company = Company.of(members)
        step = company.sampler_step(members)
        step.scale(company.latents)
        company.commit(*step.advance(members, outputs, company.latents, company.history))
        for member in members:
            member.commit_step(len(members))


class Least:
    """The operations of one step, on tensors and scalars that lie ready: no step batch is formed or kept."""

    def __init__(self, ours: Ours) -> None:
        company = Company.of(ours.generations)
        self._latents = company.latents.clone()
        self._update = ours.generations[0].table.updates[1]  # a later step: a multistep one has its history
        rows = [member.table.packed[1] for member in ours.generations]
        packed = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.float32)
        self._columns = packed.view(len(rows), -1, 1, 1, 1).unbind(1)
        self._noise = torch.empty_like(self._latents) if ours.is_stochastic else None
        self._rows = () if self._noise is None else self._noise.unsqueeze(1).unbind(0)
        self._generators = [torch.Generator("cpu") for _ in ours.generations]

    def step(self, outputs: Tensor) -> None:
        """Scaled, drawn, advanced, into nowhere."""
        if self._update.is_input_scaled:
            scale_model_input(self._latents, self._columns[0])
        for row, generator in zip(self._rows, self._generators, strict=False):
            row.normal_(generator=generator)
        advance(self._update, outputs, self._latents, self._columns, self._noise, self._latents)


def scheduler_for(name: SchedulerName) -> Any:
    """What a model came with that the sampler fits; nothing is left to the defaults of another class."""
    if name == "flow_match_euler":
        return FlowMatchEulerDiscreteScheduler()
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def measure(name: SchedulerName, seed: int, shape: tuple[int, ...] = SHIPPED, num_repeats: int = 20) -> Cost:
    """Medians over all steps of so many walks of the eight requests.

    Wall time: a step is far shorter than a time slice, so that a busy machine disturbs few of them, and
    asking for CPU time costs as much as an operation.
    """
    seconds: dict[str, list[float]] = {}
    torch.manual_seed(seed)
    batches = torch.randn(NUM_TICKS, len(STEPS), *shape[1:])
    for repeat in range(num_repeats + 1):
        theirs = Theirs(name, seed, shape)
        ours, reformed = (Ours(name, seed, shape) for _ in range(2))
        least = Least(ours)
        for tick, outputs in enumerate(batches):
            turned = deque(reformed.generations)
            turned.rotate(-(tick % len(STEPS)))
            works: list[tuple[str, Callable[..., object], tuple[Any, ...]]] = [
                ("theirs", theirs.step, (tick, outputs.unsqueeze(1).unbind(0))),
                ("ours", ours.step, (ours.generations, outputs)),
                ("reformed", reformed.step, (list(turned), outputs.roll(-(tick % len(STEPS)), 0))),
                ("least", least.step, (outputs,)),
            ]
            if ours.is_stochastic:
                works.append(("noise", _draw, ([torch.Generator("cpu") for _ in STEPS], shape)))
            for arm, work, arguments in works if (tick + repeat) % 2 else reversed(works):
                seconds.setdefault(arm, []).append(_seconds(work, *arguments))
        for own, again, their_latents in zip(
            ours.generations, reformed.generations, theirs.latents, strict=True
        ):
            for one in (own, again):
                assert torch.equal(one.latents, their_latents), "arms that differ cannot be compared"
        if repeat == 0:  # warms up
            seconds.clear()
    costs = {arm: _per_request(ticks) for arm, ticks in seconds.items()}
    return Cost(costs["theirs"], costs["ours"], costs["reformed"], costs["least"], costs.get("noise", 0.0))


def measure_all(
    seeds: Sequence[int] = SEEDS, shape: tuple[int, ...] = SHIPPED, num_repeats: int = 20
) -> dict[str, list[Cost]]:
    """Sampler -> a cost for each seed; on one thread, in turns over the seeds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    costs: dict[str, list[Cost]] = {name: [] for name in EXPANDED}
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # diffusers converts a tensor as numpy 2 dislikes
            for seed in seeds:
                for name in EXPANDED:
                    costs[name].append(measure(name, seed, shape, num_repeats))
    finally:
        torch.set_num_threads(before)
    return costs


def geometric_means(costs: dict[str, list[Cost]], gain: str = "gain") -> list[float]:
    """One for each seed, over all samplers."""
    return [
        statistics.geometric_mean(getattr(cost, gain) for cost in of_seed)
        for of_seed in zip(*costs.values(), strict=True)
    ]


def least(costs: dict[str, list[Cost]], gain: str = "gain") -> list[float]:
    """For each seed the gain of the sampler that gains least."""
    return [min(getattr(cost, gain) for cost in of_seed) for of_seed in zip(*costs.values(), strict=True)]


def spread(samples: list[float]) -> tuple[float, float, float]:
    """Median, least, greatest."""
    return statistics.median(samples), min(samples), max(samples)


def lines(costs: dict[str, list[Cost]]) -> Iterator[str]:
    """A table: microseconds a request and step, medians over the seeds, and the gains with their spread."""
    yield (
        f"{'sampler':18} {'diffusers':>10} {'ours':>8} {'reformed':>9} {'least':>8} {'noise':>8} {'gain':>22}"
        f" {'reformed':>9} {'limit':>7} {'without noise':>14}"
    )
    for name, of_name in costs.items():
        theirs, ours, reformed, fewest, noise = (
            statistics.median(getattr(cost, part) for cost in of_name)
            for part in ("theirs", "ours", "reformed", "least", "noise")
        )
        again, most, alone = (
            statistics.median(getattr(cost, gain) for cost in of_name)
            for gain in ("gain_reformed", "gain_least", "gain_without_noise")
        )
        gain, low, high = spread([cost.gain for cost in of_name])
        yield (
            f"{name:18} {theirs:10.1f} {ours:8.1f} {reformed:9.1f} {fewest:8.1f} {noise:8.1f}"
            f" {gain:8.1f} ({low:4.1f} to {high:4.1f}) {again:9.1f} {most:7.1f} {alone:14.1f}"
        )
    value, low, high = spread(geometric_means(costs))
    again, most = (statistics.median(geometric_means(costs, of)) for of in ("gain_reformed", "gain_least"))
    yield f"{'geometric mean':18} {'':47} {value:8.1f} ({low:4.1f} to {high:4.1f}) {again:9.1f} {most:7.1f}"


def _seconds(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    started_at = time.perf_counter()
    work(*args, **kwargs)
    return time.perf_counter() - started_at


def _draw(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, generator=generator) for generator in generators]


def _per_request(seconds: list[float]) -> float:
    return statistics.median(seconds) / len(STEPS) * 1e6


if __name__ == "__main__":
    for shape in (SHIPPED, LARGE):
        print(f"latents {shape[1:]}")
        print("\n".join(lines(measure_all(shape=shape))))
