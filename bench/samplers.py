"""What a step's update costs: diffusers' own `step()`, one request at a time, against ours for all of them.

`python -m bench.samplers` prints a line a sampler and the geometric mean. Eight requests of different step
counts walk side by side, from random model outputs; both arms take the same step one after the other, in
turns, in inference mode. It measures no model, and no forming of the batch of latents, which any engine
needs. Where a sampler draws noise, both arms draw it; the table shows the cost of that beside.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, get_args

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

from engine.generation import Generation
from engine.policy import BatchKey
from engine.request import GenerationRequest, SchedulerName, SchedulerSpec
from engine.sampling import CoefficientTables, advance_rows, scale_rows

P = ParamSpec("P")
SHAPE = (1, 4, 64, 64)
STEPS = (12, 20, 30, 50, 12, 20, 30, 50)  # of eight requests
NUM_TICKS = 12  # the last of them is the last step of two requests
SEEDS = (1, 2, 3)
LIMIT = (
    "passes over memory: a formula has 2 to 10 of them at 1 to 2 us a row and one fused pass has one, and"
    " noise from a request's own generator costs both arms the same"
)
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
    """Medians of one sampler and seed, in microseconds a request and step."""

    theirs: float
    ours: float
    noise: float  # of both: drawn from the request's own generator; 0 where none is

    @property
    def gain(self) -> float:
        """How many times cheaper ours is, noise included."""
        return self.theirs / self.ours

    @property
    def gain_without_noise(self) -> float:
        """The same for the arithmetic alone."""
        return (self.theirs - self.noise) / (self.ours - self.noise)


class Requests:
    """Eight requests by one sampler, twice: for diffusers one scheduler each, for us one table each."""

    def __init__(self, name: SchedulerName, seed: int) -> None:
        is_flow = name == "flow_match_euler"
        config = FlowMatchEulerDiscreteScheduler().config if is_flow else DDIMScheduler().config
        tables = CoefficientTables(config, "own" if is_flow else None)
        key = BatchKey("m", SHAPE[2], SHAPE[3], is_pinned=False)
        self.is_scaled = not is_flow  # flow-matching pipelines do not call `scale_model_input`
        self.schedulers, self.generators, self.generations = [], [], []
        for index, num_steps in enumerate(STEPS):
            request = GenerationRequest("m", "", 512, 512, num_steps, 1.0, seed + index)
            table = tables.table(SchedulerSpec(name), num_steps)
            generation = Generation(request, key, table, is_guided=False, submitted_at=0.0, num_ticks=0)
            generation.latents = torch.randn(SHAPE, generator=generation.generator) * table.init_noise_sigma
            self.generations.append(generation)
            scheduler = CLASSES[name].from_config(config)
            scheduler.set_timesteps(num_steps)
            self.schedulers.append(scheduler)
            generator = torch.Generator("cpu").manual_seed(seed + index)
            torch.randn(SHAPE, generator=generator)  # it has drawn the first latents, as ours has
            self.generators.append(generator)
        self.latents = [generation.latents for generation in self.generations]
        self.is_stochastic = self.generations[0].table.updates[0].is_stochastic
        self.extra = [
            {} if name in ("ddim", "dpmpp_2m", "flow_match_euler") else {"generator": one}
            for one in self.generators
        ]

    def step_theirs(self, tick: int, outputs: Sequence[Tensor]) -> None:
        """Eight calls of `step()`, and of `scale_model_input` where the pipeline has one."""
        for index, scheduler in enumerate(self.schedulers):
            timestep, latents = scheduler.timesteps[tick], self.latents[index]
            if self.is_scaled:
                scheduler.scale_model_input(latents, timestep)
            step = scheduler.step(outputs[index], timestep, latents, **self.extra[index], return_dict=False)
            self.latents[index] = step[0]

    def step_ours(self, latents: Tensor, outputs: Tensor) -> None:
        """The same in one call, as `Runner.step` makes it: gathered, advanced, committed."""
        scale_rows(self.generations, latents)
        following, histories = advance_rows(self.generations, outputs, latents)
        rows = following.unsqueeze(1).unbind(0)
        for generation, row, history in zip(self.generations, rows, histories, strict=True):
            generation.commit_step(row, len(STEPS), history)


def measure(name: SchedulerName, seed: int, num_repeats: int = 20) -> Cost:
    """Medians over all steps of so many walks of the eight requests."""
    theirs: list[float] = []
    ours: list[float] = []
    noise: list[float] = []
    torch.manual_seed(seed)
    batches = torch.randn(NUM_TICKS, len(STEPS), *SHAPE[1:])
    for repeat in range(num_repeats + 1):
        requests = Requests(name, seed)
        for tick, outputs in enumerate(batches):
            rows = outputs.unsqueeze(1).unbind(0)
            latents = torch.cat([one.latents for one in requests.generations])
            if (tick + repeat) % 2:
                theirs.append(_seconds(requests.step_theirs, tick, rows))
            ours.append(_seconds(requests.step_ours, latents, outputs))
            if (tick + repeat) % 2 == 0:
                theirs.append(_seconds(requests.step_theirs, tick, rows))
            if requests.is_stochastic:
                noise.append(_seconds(_draw, [torch.Generator("cpu") for _ in STEPS]))
        for one, their_latents in zip(requests.generations, requests.latents, strict=True):
            assert torch.equal(one.latents, their_latents), "two arms that differ cannot be compared"
        if repeat == 0:  # warms up
            theirs, ours, noise = [], [], []
    return Cost(_per_request(theirs), _per_request(ours), _per_request(noise) if noise else 0.0)


def measure_all(seeds: Sequence[int] = SEEDS) -> dict[str, list[Cost]]:
    """Sampler -> a cost for each seed; on one thread, in turns over the seeds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    costs: dict[str, list[Cost]] = {name: [] for name in get_args(SchedulerName)}
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # diffusers converts a tensor as numpy 2 dislikes
            for seed in seeds:
                for name in get_args(SchedulerName):
                    costs[name].append(measure(name, seed))
    finally:
        torch.set_num_threads(before)
    return costs


def sampler_gain(seeds: Sequence[int] = SEEDS) -> tuple[float, float, float, list[float]]:
    """Median, least and greatest over the seeds of the geometric mean over the samplers, and each seed's."""
    return spread(geometric_means(measure_all(seeds)))


def geometric_means(costs: dict[str, list[Cost]]) -> list[float]:
    """One for each seed, over all samplers."""
    return [
        statistics.geometric_mean(cost.gain for cost in of_seed)
        for of_seed in zip(*costs.values(), strict=True)
    ]


def spread(samples: list[float]) -> tuple[float, float, float, list[float]]:
    """Median, least, greatest, and the samples."""
    return statistics.median(samples), min(samples), max(samples), samples


def lines(costs: dict[str, list[Cost]]) -> Iterator[str]:
    """A table: microseconds a request and step, medians over the seeds, and the gains with their spread."""
    yield f"{'sampler':18} {'diffusers':>10} {'ours':>8} {'noise':>8} {'gain':>22} {'without noise':>14}"
    for name, of_name in costs.items():
        theirs, ours, noise = (
            statistics.median(getattr(cost, part) for cost in of_name) for part in ("theirs", "ours", "noise")
        )
        gain, low, high, _ = spread([cost.gain for cost in of_name])
        alone = statistics.median(cost.gain_without_noise for cost in of_name)
        costs_of_name = f"{name:18} {theirs:10.1f} {ours:8.1f} {noise:8.1f}"
        yield f"{costs_of_name} {gain:8.1f} ({low:4.1f} to {high:4.1f}) {alone:14.1f}"
    value, low, high, _ = spread(geometric_means(costs))
    yield f"{'geometric mean':18} {'':28} {value:8.1f} ({low:4.1f} to {high:4.1f})"


def _seconds(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    started_at = time.perf_counter()
    work(*args, **kwargs)
    return time.perf_counter() - started_at


def _draw(generators: Sequence[torch.Generator]) -> list[Tensor]:
    return [torch.randn(SHAPE, generator=generator) for generator in generators]


def _per_request(seconds: list[float]) -> float:
    return statistics.median(seconds) / len(STEPS) * 1e6


if __name__ == "__main__":
    print("\n".join(lines(measure_all())))
