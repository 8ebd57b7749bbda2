"""Which models the coefficient tables can draw: by the kind of the scheduler that a model came with.

Owns what is refused of a hand-written family. A model of one kind is never given a sampler of another: the
denoiser would be told times and noise levels that it has not seen, and would draw noise without an error.
"""

from typing import Any

from engine.errors import LoadError
from engine.scheduler_classes import CLASSES, Kind, kind_of

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def check_scheduler(scheduler: Any, *, is_flow: bool) -> Kind:
    """The kind of the scheduler; raises `LoadError` unless it fits the family and can draw anything.

    `is_flow` says whether the models of the family are trained by flow matching.
    """
    kind, name, config = _known_kind(scheduler), type(scheduler).__name__, scheduler.config
    prediction_type = config.get("prediction_type", "epsilon")
    if is_flow != (kind == "flow"):
        does = ("predict noise or v", "are trained by flow matching")
        raise LoadError(
            f"its scheduler is a {name}, for models that {does[kind == 'flow']}, and those of its family"
            f" {does[is_flow]}: choose a model whose scheduler fits, or the model's own family"
        )
    if is_flow:
        if name not in CLASSES["flow"] and prediction_type != "flow_prediction":
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
    return kind


def _known_kind(scheduler: Any) -> Kind:
    kind, name = kind_of(scheduler), type(scheduler).__name__
    if kind == "edm":
        raise LoadError(
            f"its scheduler is an {name}, for models that are told sigmas (EDM), and no sampler here is:"
            " choose a model with another kind of scheduler"
        )
    if scheduler.config.get("timestep_type") == "continuous":
        raise LoadError(
            f"its scheduler ({name}) has timestep_type 'continuous', for models that are told sigmas (EDM),"
            " and no sampler here is: choose a model with another kind of scheduler"
        )
    if kind == "unknown":
        raise LoadError(
            f"its scheduler is a {name}, whose kind no sampler here serves: choose a model with a scheduler"
            " like DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler"
        )
    return kind
