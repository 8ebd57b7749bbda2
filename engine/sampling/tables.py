"""A model's coefficient tables: which of diffusers' schedulers a request means, made once and kept.

Owns what each scheduler's name means for a model's configuration, and what is refused. It does not know
what a table holds.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Literal, TypeVar, get_args

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

from engine.errors import LoadError, RequestInvalid
from engine.request import SchedulerName, SchedulerSpec
from engine.sampling import expansion
from engine.sampling.kinds import SAMPLERS, check_scheduler, model_entries
from engine.sampling.table import CoefficientTable

FlowSigmas = Literal["own", "even"]
"""Where a flow-matching pipeline takes its sigmas from: its scheduler, or evenly from 1 to 1/steps."""
MAX_TABLES = 256
Made = TypeVar("Made")
OTHER_SIGMAS = dict.fromkeys(
    ("use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas"), False
)
"""diffusers accepts at most one of these entries, so code that sets one clears the others."""
DETERMINISTIC = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class CoefficientTables:
    """The tables of one model, made from the scheduler that it came with and kept by (spec, steps).

    Raises `LoadError` where that is of a kind that cannot draw with the model. The scheduler, diffusers' own,
    is read and never stepped.
    """

    def __init__(self, scheduler: Any, flow_sigmas: FlowSigmas | None = None) -> None:
        self._class_name = type(scheduler).__name__
        self._config: Mapping[str, Any] = scheduler.config
        self._flow_sigmas = flow_sigmas
        self._kind = check_scheduler(scheduler, is_flow=flow_sigmas is not None)
        self._prediction_type = self._config.get("prediction_type", "epsilon")
        self._table = lru_cache(MAX_TABLES)(self._expand)

    def table(self, spec: SchedulerSpec, num_inference_steps: int, num_patches: int = 0) -> CoefficientTable:
        """The table of a request; raises `RequestInvalid` for a scheduler or steps that this model has not.

        Where the shift depends on the resolution, the image's number of patches decides it.
        """
        self._check(spec, num_inference_steps)
        is_shifted = self._flow_sigmas is not None and self._config.get("use_dynamic_shifting")
        return self._table(spec, num_inference_steps, num_patches if is_shifted else 0)

    def check_offer(self, name: str, spec: SchedulerSpec, default_steps: int, max_steps: int) -> None:
        """Raise `LoadError` unless requests for this scheduler, which users call `name`, can be drawn.

        Its tables are made at one step, at the default and at the most; where some number of steps between
        them can fail, which is cheap to see, each is tried.
        """
        try:
            self._check(spec, 1)
            if spec.name == "ddim":
                scheduler = self._diffusion(spec, DDIMScheduler)
                for num_steps in range(1, min(max_steps, self._max_steps(spec)) + 1):
                    self._tried(partial(expansion.set_whole, scheduler, num_steps), num_steps)
            for num_steps in sorted({1, default_steps, max_steps}):
                self.table(spec, num_steps)
        except RequestInvalid as error:
            raise LoadError(
                f"schedulers: {name!r} cannot be offered ({error}; its own is a {self._class_name}):"
                " take it out of the list, or lower max_num_inference_steps where that is what it names"
            ) from error

    def _max_steps(self, spec: SchedulerSpec) -> int:
        limit: int = self._config.get("num_train_timesteps", 1000)
        return min(limit, self._config.get("original_inference_steps", 50)) if spec.name == "lcm" else limit

    def _check(self, spec: SchedulerSpec, num_inference_steps: int) -> None:
        is_flow = self._flow_sigmas is not None
        # A pipeline that hands its own sigmas over takes no scheduler but flow_match_euler.
        is_taken = self._flow_sigmas != "even" or spec.name == "flow_match_euler"
        if spec.name not in SAMPLERS[self._kind] or not is_taken:
            raise RequestInvalid(
                f"scheduler: {spec.name} is not for this kind of model, which came with a {self._class_name}"
            )
        if spec.name == "euler_ancestral" and self._prediction_type == "sample":
            raise RequestInvalid("scheduler: euler_ancestral is not for a model that predicts the sample")
        limit = self._max_steps(spec)
        if num_inference_steps > limit:
            raise RequestInvalid(f"num_inference_steps: {num_inference_steps} is above {limit}")
        is_shifted = is_flow and self._config.get("use_dynamic_shifting")
        if is_shifted and (spec.shift is not None or spec.name != "flow_match_euler"):
            raise RequestInvalid("shift: this model's shift follows from the resolution")
        if spec.name == "dpmpp_2m":
            if is_flow and (spec.karras or spec.spacing):
                raise RequestInvalid("scheduler: a flow-matching model has no Karras sigmas and no spacing")
            if is_flow and (self._config.get("invert_sigmas") or self._config.get("shift_terminal")):
                raise RequestInvalid("scheduler: dpmpp_2m has neither invert_sigmas nor shift_terminal")
            if not is_flow and spec.shift is not None:
                raise RequestInvalid("shift: this model is not trained by flow matching")

    def _expand(self, spec: SchedulerSpec, num_inference_steps: int, num_patches: int) -> CoefficientTable:
        table = self._tried(lambda: self._made(spec, num_inference_steps, num_patches), num_inference_steps)
        is_finite = bool(torch.isfinite(table.coefficients).all())
        if self._prediction_type == "epsilon" and spec.name in ("ddim", "lcm", "dpmpp_2m"):
            is_finite = is_finite and bool(
                (table.coefficients[:, 0] != 0).all()
            )  # the predicted x_0's divisor
        if not is_finite:  # eta 1 where the terminal SNR is zero, for one
            raise RequestInvalid(
                f"scheduler: {spec.name}, eta {spec.eta}, has no finite steps on this model"
                f" at {num_inference_steps} steps"
            )
        return table

    def _tried(self, make: Callable[[], Made], num_inference_steps: int) -> Made:
        """What `make` gives; diffusers' own schedulers meet some configurations with an error of Python's."""
        try:
            return make()
        except DETERMINISTIC as error:
            said = " ".join(str(error).split())
            raise RequestInvalid(
                f"num_inference_steps: {num_inference_steps} cannot be had of this scheduler ({said})"
            ) from error

    def _made(self, spec: SchedulerSpec, steps: int, num_patches: int) -> CoefficientTable:
        match spec.name:
            case "ddim":
                return expansion.expand_ddim(self._diffusion(spec, DDIMScheduler), steps, spec.eta)
            case "euler":
                return expansion.expand_euler(self._diffusion(spec, EulerDiscreteScheduler), steps)
            case "euler_ancestral":
                ancestral = self._diffusion(spec, EulerAncestralDiscreteScheduler)
                return expansion.expand_euler_ancestral(ancestral, steps)
            case "dpmpp_2m":
                return expansion.expand_dpmpp_2m(self._dpm_solver(spec), steps)
            case "lcm":
                return expansion.expand_lcm(self._diffusion(spec, LCMScheduler), steps)
            case "flow_match_euler":
                flow = FlowMatchEulerDiscreteScheduler.from_config(self._config, shift=self._shift(spec))
                even = np.linspace(1.0, 1 / steps, steps) if self._flow_sigmas == "even" else None
                return expansion.expand_flow_match_euler(flow, steps, even, num_patches)

    def _diffusion(self, spec: SchedulerSpec, scheduler_class: Any, **changes: Any) -> Any:
        """A scheduler of another class for the same model, which has no other class's defaults.

        Latents are never clipped, whatever the configuration says: they have no bounds, as pixels do.
        """
        changes |= {"clip_sample": False, **model_entries(self._config)}
        # Passed even where equal to the configuration: `from_config` drops what another class defaulted.
        changes |= {"timestep_spacing": spec.spacing} if spec.spacing else {}
        changes |= {**OTHER_SIGMAS, "use_karras_sigmas": True} if spec.karras else {}
        return scheduler_class.from_config(self._config, **changes)

    def _dpm_solver(self, spec: SchedulerSpec) -> Any:
        """The second-order multistep solver that the name means, whatever solver the model came with."""
        solver = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
        if self._flow_sigmas is None:
            return self._diffusion(spec, DPMSolverMultistepScheduler, **solver)
        flow = {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": self._shift(spec),
        }
        return DPMSolverMultistepScheduler.from_config(self._config, **{**solver, **OTHER_SIGMAS, **flow})

    def _shift(self, spec: SchedulerSpec) -> float:
        """The request's, or the model's own under the name that its scheduler's class gives it."""
        own: float = self._config.get("shift", self._config.get("flow_shift", 1.0))
        return own if spec.shift is None else spec.shift


def schedulers_of(scheduler: Any, flow_sigmas: FlowSigmas | None) -> list[SchedulerName]:
    """Those that can draw with a model which came with this scheduler."""
    tables = CoefficientTables(scheduler, flow_sigmas)
    found: list[SchedulerName] = []
    for name in get_args(SchedulerName):
        with suppress(RequestInvalid):
            tables.table(SchedulerSpec(name), 2)
            found.append(name)
    return found
