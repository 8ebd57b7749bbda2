"""The kinds of scheduler: what a model learned to predict, and so which samplers can draw with it.

Owns diffusers' scheduler classes by kind, and the entries of a configuration that describe the model rather
than a sampler. A model of one kind is never given a sampler of another: the denoiser would be told times and
noise levels that it has not seen, and would draw noise without an error.
"""

from collections.abc import Mapping
from typing import Any, Literal

from engine.errors import LoadError
from engine.request import SchedulerName

Kind = Literal["diffusion", "consistency", "flow"]

DIFFUSION = (
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
)
"""Steps over `alphas_cumprod` with whole timesteps: Ho et al. 2020 (2006.11239)."""
CONSISTENCY = ("LCMScheduler", "TCDScheduler")
"""The same noise levels, for models distilled to jump to the end (Luo et al. 2023, 2310.04378)."""
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
"""Rectified flow (Esser et al. 2024, 2403.03206); the solvers above too, where they say `use_flow_sigmas`."""
EDM = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
"""Karras et al. 2022 (2206.00364): the denoiser is told the logarithm of sigma. No sampler here does that."""

SAMPLERS: Mapping[Kind, frozenset[SchedulerName]] = {
    # Weights distilled for consistency sampling are often published under the scheduler of the model that
    # they were made from, so who lists `lcm` for such a model is believed.
    "diffusion": frozenset({"ddim", "euler", "euler_ancestral", "dpmpp_2m", "lcm"}),
    "consistency": frozenset({"lcm"}),
    "flow": frozenset({"flow_match_euler", "dpmpp_2m"}),
}
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MODEL_ENTRIES = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""What a model was trained with. The classes' defaults differ, and `from_config` would take another's."""


def kind_of(scheduler: Any) -> Kind:
    """The kind of a model that came with this scheduler of diffusers; raises `LoadError` for any other."""
    name, config = type(scheduler).__name__, scheduler.config
    if name in EDM:
        raise LoadError(
            f"its scheduler is an {name}, for models that are told sigmas (EDM), and no sampler here is:"
            " choose a model with another kind of scheduler"
        )
    if config.get("timestep_type") == "continuous":
        raise LoadError(
            f"its scheduler ({name}) has timestep_type 'continuous', for models that are told sigmas (EDM),"
            " and no sampler here is: choose a model with another kind of scheduler"
        )
    if name in FLOW:
        return "flow"
    if name in DIFFUSION:
        is_flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
        return "flow" if is_flow else "diffusion"
    if name in CONSISTENCY:
        return "consistency"
    raise LoadError(
        f"its scheduler is a {name}, whose kind no sampler here serves: choose a model with a scheduler"
        f" like {', '.join(DIFFUSION[:1] + DIFFUSION[9:10] + FLOW[:1])}"
    )


def check_scheduler(scheduler: Any, *, is_flow: bool) -> Kind:
    """The kind of the scheduler; raises `LoadError` unless it fits the family and can draw anything.

    `is_flow` says whether the models of the family are trained by flow matching.
    """
    kind, name, config = kind_of(scheduler), type(scheduler).__name__, scheduler.config
    prediction_type = config.get("prediction_type", "epsilon")
    if is_flow != (kind == "flow"):
        does = ("predict noise or v", "are trained by flow matching")
        raise LoadError(
            f"its scheduler is a {name}, for models that {does[kind == 'flow']}, and those of its family"
            f" {does[is_flow]}: choose a model whose scheduler fits, or the model's own family"
        )
    if is_flow:
        if name not in FLOW and prediction_type != "flow_prediction":
            raise LoadError(f"prediction_type {prediction_type!r} of its {name} is not flow_prediction")
        if config.get("stochastic_sampling"):
            raise LoadError(f"stochastic_sampling: a {name} that draws noise at every step is not supported")
        return kind
    if prediction_type not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        raise LoadError(
            f"prediction_type {prediction_type!r} of its {name} is not supported: there is {known}"
        )
    if config.get("thresholding"):
        raise LoadError(
            f"thresholding: that of its {name} is for pixels, not for latents: it is not supported"
        )
    if config.get("rescale_betas_zero_snr") and prediction_type == "epsilon":
        raise LoadError(
            f"its {name} has rescale_betas_zero_snr with prediction_type 'epsilon': the first timestep is"
            " noise alone, and who predicts that knows nothing of the image (it is divided by zero): one of"
            " the two entries is wrong"
        )
    return kind


def model_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the scheduler's configuration says about the model, its own class's defaults included."""
    return {name: config[name] for name in MODEL_ENTRIES if name in config}
