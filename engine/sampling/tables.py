"""A model's coefficient tables: each of its schedulers expanded once for a number of steps, and kept.

Owns which schedulers can be expanded, and what is refused besides. It does not know what a table holds, nor
how a scheduler is made.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from engine.errors import RequestInvalid
from engine.request import SchedulerName, SchedulerSpec
from engine.sampling import expansion
from engine.sampling.kinds import check_scheduler
from engine.sampling.table import CoefficientTable
from engine.schedulers import Schedulers, offering, refusing

FlowSigmas = Literal["own", "even"]
"""Where a flow-matching pipeline takes its sigmas from: its scheduler, or evenly from 1 to 1/steps."""
EXPANDED: tuple[SchedulerName, ...] = (
    "ddim",
    "euler",
    "euler_ancestral",
    "dpmpp_2m",
    "lcm",
    "flow_match_euler",
)
"""The schedulers that are written as tables."""
MAX_TABLES = 256


class CoefficientTables:
    """The tables of one model, made from the scheduler that it came with and kept by (spec, steps).

    Raises `LoadError` where that is of a kind that cannot draw with the model. The scheduler, diffusers' own,
    is read and never stepped.
    """

    def __init__(self, scheduler: Any, flow_sigmas: FlowSigmas | None = None) -> None:
        self._own = scheduler
        self._config: Mapping[str, Any] = scheduler.config
        self._flow_sigmas = flow_sigmas
        check_scheduler(scheduler, is_flow=flow_sigmas is not None)
        self._schedulers = Schedulers(scheduler, handed=("sigmas",) if flow_sigmas == "even" else ())
        self._is_shifted = flow_sigmas is not None and bool(self._config.get("use_dynamic_shifting"))
        self._table = lru_cache(MAX_TABLES)(self._expand)

    def table(self, spec: SchedulerSpec, num_inference_steps: int, num_patches: int = 0) -> CoefficientTable:
        """The table of a request; raises `RequestInvalid` for a scheduler or steps that this model has not.

        Where the shift depends on the resolution, the image's number of patches decides it.
        """
        self._check(spec)
        return self._table(spec, num_inference_steps, num_patches if self._is_shifted else 0)

    def check_offer(self, name: str, spec: SchedulerSpec, default_steps: int, max_steps: int) -> None:
        """Raise `LoadError` unless requests for this scheduler, which users call `name`, can be drawn."""
        with offering(name, self._own):
            self._check(spec)
        self._schedulers.check_offer(name, spec, default_steps, max_steps)
        with offering(name, self._own):
            for num_steps in sorted({1, default_steps, max_steps}):
                self.table(spec, num_steps)

    def _check(self, spec: SchedulerSpec) -> None:
        # A pipeline that hands its own sigmas over takes no scheduler but flow_match_euler.
        is_taken = self._flow_sigmas != "even" or spec.name == "flow_match_euler"
        if spec.name not in EXPANDED or not is_taken:
            raise RequestInvalid(
                f"scheduler: {spec.name} is not for this kind of model,"
                f" which came with a {type(self._own).__name__}"
            )
        if self._is_shifted and spec.name == "dpmpp_2m":
            raise RequestInvalid("shift: this model's shift follows from the resolution")

    def _expand(self, spec: SchedulerSpec, num_inference_steps: int, num_patches: int) -> CoefficientTable:
        scheduler = self._schedulers.make(spec, num_inference_steps, num_patches)
        with refusing(f"num_inference_steps: {num_inference_steps} cannot be had of this scheduler"):
            table = self._expanded(scheduler, spec, num_inference_steps, num_patches)
        is_finite = bool(torch.isfinite(table.coefficients).all())
        prediction_type = self._config.get("prediction_type", "epsilon")
        if prediction_type == "epsilon" and spec.name in ("ddim", "lcm", "dpmpp_2m"):
            is_finite = is_finite and bool(
                (table.coefficients[:, 0] != 0).all()
            )  # the predicted x_0's divisor
        if not is_finite:
            raise RequestInvalid(
                f"scheduler: {spec.name}, eta {spec.eta}, has no finite steps on this model"
                f" at {num_inference_steps} steps"
            )
        return table

    def _expanded(
        self, scheduler: Any, spec: SchedulerSpec, steps: int, num_patches: int
    ) -> CoefficientTable:
        if spec.name == "ddim":
            return expansion.expand_ddim(scheduler, steps, spec.eta)
        if spec.name == "flow_match_euler":
            even = np.linspace(1.0, 1 / steps, steps) if self._flow_sigmas == "even" else None
            return expansion.expand_flow_match_euler(scheduler, steps, even, num_patches)
        expand = {
            "euler": expansion.expand_euler,
            "euler_ancestral": expansion.expand_euler_ancestral,
            "dpmpp_2m": expansion.expand_dpmpp_2m,
            "lcm": expansion.expand_lcm,
        }
        return expand[spec.name](scheduler, steps)


def schedulers_of(scheduler: Any, flow_sigmas: FlowSigmas | None) -> list[SchedulerName]:
    """Those that can draw with a model which came with this scheduler."""
    tables = CoefficientTables(scheduler, flow_sigmas)
    found: list[SchedulerName] = []
    for name in EXPANDED:
        with suppress(RequestInvalid):
            tables.table(SchedulerSpec(name), 2)
            found.append(name)
    return found
