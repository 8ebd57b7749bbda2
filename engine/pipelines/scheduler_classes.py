"""diffusers' scheduler classes by kind of model, and the class and settings of every `SchedulerName`.

Owns, as data, which scheduler classes work with which models. It makes no scheduler and reads no request.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from catalogue.schedulers import SchedulerName

Kind = Literal["diffusion", "consistency", "flow", "edm", "unknown"]
"""What a model predicts, and at which noise levels. A scheduler of another kind would draw noise.

diffusion: predicts the noise, v or the sample at integer timesteps (Ho et al. 2020, 2006.11239).
consistency: the same, distilled to predict the final sample in one step (Luo et al. 2023, 2310.04378).
flow: predicts the velocity of a rectified flow (Esser et al. 2024, 2403.03206).
edm: like diffusion, conditioned on the logarithm of sigma (Karras et al. 2022, 2206.00364).
unknown: any other class of diffusers; only the model's own pipeline knows how to use it.
"""
CLASSES: Mapping[Kind, tuple[str, ...]] = {
    "diffusion": (
        "DDIMScheduler",
        "DDIMParallelScheduler",
        "DDPMScheduler",
        "DDPMParallelScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "SASolverScheduler",
        "UniPCMultistepScheduler",
    ),
    "consistency": ("LCMScheduler", "TCDScheduler"),
    "flow": ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"),
    "edm": ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"),
}
"""The kind of a model by its scheduler's class. Solvers of diffusion models may set `use_flow_sigmas`."""
NOISE_OF_ITS_OWN = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")
"""Classes that draw noise from torchsde's Brownian trees instead of the generator of the call."""


@dataclass(frozen=True)
class Sampler:
    """The class of diffusers and the configuration entries that a scheduler's name stands for."""

    scheduler_class: Any
    entries: Mapping[str, Any] = field(default_factory=dict)


SECOND_ORDER = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
UNIPC = {
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "lower_order_final": True,
    "disable_corrector": [],
    "solver_p": None,
}
DEIS = {"algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho", "lower_order_final": True}
OTHER_SIGMAS = dict.fromkeys(
    ("use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas"), False
)
"""diffusers accepts at most one of these entries, so code that sets one clears the others."""
FLOW = {**OTHER_SIGMAS, "prediction_type": "flow_prediction", "use_flow_sigmas": True}
CONSISTENCY_SAMPLERS: Mapping[SchedulerName, Sampler] = {
    "lcm": Sampler(LCMScheduler),
    "tcd": Sampler(TCDScheduler),
}
SAMPLERS: Mapping[Kind, Mapping[SchedulerName, Sampler]] = {
    "diffusion": {
        "ddim": Sampler(DDIMScheduler),
        "ddpm": Sampler(DDPMScheduler, {"variance_type": "fixed_small"}),
        "euler": Sampler(EulerDiscreteScheduler),
        "euler_ancestral": Sampler(EulerAncestralDiscreteScheduler),
        "heun": Sampler(HeunDiscreteScheduler),
        "dpmpp_2m": Sampler(DPMSolverMultistepScheduler, SECOND_ORDER),
        "dpmpp_2m_sde": Sampler(
            DPMSolverMultistepScheduler, {**SECOND_ORDER, "algorithm_type": "sde-dpmsolver++"}
        ),
        "dpmpp_2s": Sampler(DPMSolverSinglestepScheduler, {**SECOND_ORDER, "lower_order_final": True}),
        "unipc": Sampler(UniPCMultistepScheduler, UNIPC),
        "deis": Sampler(DEISMultistepScheduler, DEIS),
        "pndm": Sampler(PNDMScheduler, {"skip_prk_steps": True}),
        # Weights distilled for consistency sampling are often published with the scheduler of the original
        # model, so these names may be offered for any diffusion model.
        **CONSISTENCY_SAMPLERS,
    },
    "consistency": CONSISTENCY_SAMPLERS,
    "flow": {
        "flow_match_euler": Sampler(FlowMatchEulerDiscreteScheduler),
        "flow_match_heun": Sampler(FlowMatchHeunDiscreteScheduler),
        "flow_match_lcm": Sampler(FlowMatchLCMScheduler),
        "dpmpp_2m": Sampler(DPMSolverMultistepScheduler, {**SECOND_ORDER, **FLOW}),
        "unipc": Sampler(UniPCMultistepScheduler, {**UNIPC, **FLOW}),
    },
    "edm": {
        "edm_euler": Sampler(EDMEulerScheduler),
        "edm_dpmpp_2m": Sampler(EDMDPMSolverMultistepScheduler, SECOND_ORDER),
    },
    "unknown": {},
}
"""Samplers by kind and name. `default`, the model's own scheduler of any class, is not listed."""

HANDED = ("mu", "sigmas", "timesteps")
"""Arguments that pipelines may pass to `set_timesteps` instead of, or beside, a number of steps."""


def kind_of(scheduler: Any) -> Kind:
    """The kind of a model that was published with this scheduler."""
    name, config = type(scheduler).__name__, scheduler.config
    if config.get("timestep_type") == "continuous":  # as in Stable Video Diffusion
        return "unknown"
    kind: Kind = next((kind for kind, names in CLASSES.items() if name in names), "unknown")
    is_flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return "flow" if kind == "diffusion" and is_flow else kind


@cache
def entries_of(scheduler_class: Any) -> frozenset[str]:
    """The configuration entries that the class reads."""
    return frozenset(inspect.signature(scheduler_class.__init__).parameters) - {"self", "kwargs"}


@cache
def taken_by(scheduler_class: Any) -> frozenset[str]:
    """The arguments of `HANDED` that its `set_timesteps` accepts."""
    return frozenset(inspect.signature(scheduler_class.set_timesteps).parameters) & frozenset(HANDED)
