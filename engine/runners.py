"""The runners of one engine: families that are written here have one, diffusers' pipelines another.

It knows which models are of which kind, and nothing of what a runner does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from engine.errors import EngineError
from engine.families.family import Family
from engine.generation import Generation
from engine.native_generation import NativeGeneration
from engine.pipeline_generation import PipelineGeneration
from engine.pipeline_model import PipelineModel
from engine.pipeline_runner import PipelineRunner
from engine.runner import Runner


class GenerationRunner(Protocol):
    """What the engine asks of a runner, for generations of its own kind."""

    def encode(self, generation: Any) -> None:
        """Make it ready for its first step; it may be asked for twice."""

    def step(self, members: Any) -> Mapping[Any, EngineError]:
        """One forward pass for all members, which can share one; returns those that failed, and why."""

    def decode(self, generation: Any) -> np.ndarray:
        """Its image, uint8 `(H, W, 3)`."""


class Runners:
    """Both runners, with the costs that they have seen in one place."""

    def __init__(self, families: Mapping[str, Family | PipelineModel], clock: Callable[[], float]) -> None:
        pipelines = {name: one for name, one in families.items() if isinstance(one, PipelineModel)}
        native = {name: one for name, one in families.items() if not isinstance(one, PipelineModel)}
        self._native = Runner(native, clock)
        self.seen_costs = self._native.seen_costs
        self._pipeline = PipelineRunner(pipelines, clock, self.seen_costs)

    def of(self, generation: Generation) -> GenerationRunner:
        """The runner of this generation, and of all that can share its forward passes."""
        return self._pipeline if isinstance(generation, PipelineGeneration) else self._native

    def free(self, running: Sequence[Generation]) -> None:
        """Give device memory back after an out-of-memory error; what is `running` loses nothing."""
        self._native.free([one for one in running if isinstance(one, NativeGeneration)])
        self._pipeline.free([one for one in running if isinstance(one, PipelineGeneration)])
