"""The parameters of a job that a caller may set beside its prompt.

Owns their names and types; the limits of each are the server's (`GET /v1/models`). A parameter of a later
server is sent all the same: a type checker refuses it, the client does not.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Required, TypedDict


class Lora(TypedDict, total=False):
    """An adapter of the model by its name, and how strongly it is applied: 1 where `scale` is left out."""

    name: Required[str]
    scale: float


class JobParameters(TypedDict, total=False):
    """Keyword arguments of `submit`; what is left out, or None, is chosen by the model."""

    negative_prompt: str | None
    model: str | None
    width: int | None
    height: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_cutoff: float | None
    step_cache: int | None
    preset: str | None
    scheduler: str | None
    seed: int | None
    num_images: int | None
    output_format: Literal["png", "webp", "jpeg"] | None
    output_quality: int | None
    image: str | Sequence[str] | None
    mask_image: str | None
    control_image: str | None
    strength: float | None
    loras: Sequence[Lora] | None
    lane: Literal["interactive", "bulk"] | None
    strict: bool | None
    deadline_seconds: float | None
    webhook_url: str | None
    pipeline_parameters: Mapping[str, bool | int | float | str] | None
