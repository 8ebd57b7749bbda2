"""A model's coefficient tables: which of diffusers' schedulers a request means, made once and kept.

Owns what each scheduler's name means for a model's configuration, and what is refused. It does not know
what a table holds.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

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
from engine.request import SchedulerSpec
from engine.sampling import expansion
from engine.sampling.table import CoefficientTable

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
FlowSigmas = Literal["own", "even"]
"""Where a flow-matching pipeline takes its sigmas from: its scheduler, or evenly from 1 to 1/steps."""
MAX_TABLES = 256


class CoefficientTables:
    """The tables of one model, made from its scheduler's configuration and kept by (spec, steps)."""

    def __init__(self, scheduler_config: Mapping[str, Any], flow_sigmas: FlowSigmas | None = None) -> None:
        self._config = scheduler_config
        self._flow_sigmas = flow_sigmas
        self._prediction_type = scheduler_config.get("prediction_type", "epsilon")
        if scheduler_config.get("stochastic_sampling"):
            raise LoadError("a flow-matching scheduler that draws noise at every step is not supported")
        if flow_sigmas is None and self._prediction_type not in PREDICTION_TYPES:
            raise LoadError(f"prediction_type {self._prediction_type!r} is not supported")
        if scheduler_config.get("thresholding"):
            raise LoadError("dynamic thresholding is for pixels, not for latents: it is not supported")
        self._table = lru_cache(MAX_TABLES)(self._expand)

    def table(self, spec: SchedulerSpec, num_inference_steps: int, num_patches: int = 0) -> CoefficientTable:
        """The table of a request; raises `RequestInvalid` for a scheduler that this model has not.

        Where the shift depends on the resolution, the image's number of patches decides it.
        """
        self._check(spec, num_inference_steps)
        is_shifted = self._flow_sigmas is not None and self._config.get("use_dynamic_shifting")
        return self._table(spec, num_inference_steps, num_patches if is_shifted else 0)

    def _check(self, spec: SchedulerSpec, num_inference_steps: int) -> None:
        is_flow = self._flow_sigmas is not None
        # A pipeline that hands its own sigmas over takes no scheduler but flow_match_euler.
        fitting = {None: spec.name != "flow_match_euler", "own": spec.is_for_flow}
        if not fitting.get(self._flow_sigmas, spec.name == "flow_match_euler"):
            raise RequestInvalid(f"scheduler: {spec.name} is not for this kind of model")
        if spec.name == "euler_ancestral" and self._prediction_type == "sample":
            raise RequestInvalid("scheduler: euler_ancestral is not for a model that predicts the sample")
        limit = self._config.get("num_train_timesteps", 1000)
        if spec.name == "lcm":
            limit = min(limit, self._config.get("original_inference_steps", 50))
        if num_inference_steps > limit:
            raise RequestInvalid(f"num_inference_steps: {num_inference_steps} is above {limit}")
        is_shifted = is_flow and self._config.get("use_dynamic_shifting")
        if is_shifted and (spec.shift is not None or spec.name != "flow_match_euler"):
            raise RequestInvalid("shift: this model's shift follows from the resolution")
        if spec.name == "dpmpp_2m":
            if is_flow and (spec.karras or spec.spacing):
                raise RequestInvalid("scheduler: a flow-matching model has no Karras sigmas and no spacing")
            if not is_flow and spec.shift is not None:
                raise RequestInvalid("shift: this model is not trained by flow matching")

    def _expand(self, spec: SchedulerSpec, num_inference_steps: int, num_patches: int) -> CoefficientTable:
        # Passed even where equal to the configuration: `from_config` drops what another class defaulted.
        changes: dict[str, Any] = {"timestep_spacing": spec.spacing} if spec.spacing else {}
        changes |= {"use_karras_sigmas": True} if spec.karras else {}
        config, steps = self._config, num_inference_steps
        match spec.name:
            case "ddim":
                scheduler = DDIMScheduler.from_config(config, **changes)
                table = expansion.expand_ddim(scheduler, steps, spec.eta)
            case "euler":
                table = expansion.expand_euler(EulerDiscreteScheduler.from_config(config, **changes), steps)
            case "euler_ancestral":
                ancestral = EulerAncestralDiscreteScheduler.from_config(config, **changes)
                table = expansion.expand_euler_ancestral(ancestral, steps)
            case "dpmpp_2m":
                table = expansion.expand_dpmpp_2m(self._dpm_solver(spec, changes), steps)
            case "lcm":
                table = expansion.expand_lcm(LCMScheduler.from_config(config), steps)
            case "flow_match_euler":
                flow = FlowMatchEulerDiscreteScheduler.from_config(config, shift=self._shift(spec))
                even = np.linspace(1.0, 1 / steps, steps) if self._flow_sigmas == "even" else None
                table = expansion.expand_flow_match_euler(flow, steps, even, num_patches)
        if not torch.isfinite(table.coefficients).all():  # eta 1 where the terminal SNR is zero, for one
            raise RequestInvalid(
                f"scheduler: {spec.name}, eta {spec.eta}, has no finite steps on this model at {steps} steps"
            )
        return table

    def _dpm_solver(self, spec: SchedulerSpec, changes: dict[str, Any]) -> Any:
        """The second-order multistep solver that the name means, whatever solver the model came with."""
        changes |= {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
        if self._flow_sigmas is not None:
            flow_shift = self._shift(spec)
            changes |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
            changes |= {"flow_shift": flow_shift, "use_karras_sigmas": False}
        return DPMSolverMultistepScheduler.from_config(self._config, **changes)

    def _shift(self, spec: SchedulerSpec) -> float:
        """The request's, or the model's own under the name that its scheduler's class gives it."""
        own = self._config.get("shift", self._config.get("flow_shift", 1.0))
        return own if spec.shift is None else spec.shift
