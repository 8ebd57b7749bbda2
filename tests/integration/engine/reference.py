"""The image of diffusers' own pipeline for a request: the reference for the engine's images."""

from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
)

from engine.request import GenerationRequest, SchedulerSpec

MODELS = ("v-model", "epsilon-model")
CLASSES: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
}


def diffusers_image(pipeline: StableDiffusionPipeline, request: GenerationRequest) -> np.ndarray:
    """Draw the request with `StableDiffusionPipeline`."""
    spec: SchedulerSpec = request.scheduler
    changes: dict[str, Any] = {"timestep_spacing": spec.spacing} if spec.spacing else {}
    changes |= {"use_karras_sigmas": True} if spec.karras else {}
    own = pipeline.scheduler
    pipeline.scheduler = CLASSES[spec.name].from_config(own.config, **changes)
    try:
        image = pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt or None,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            eta=spec.eta,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="pil",
        ).images[0]
    finally:
        pipeline.scheduler = own
    return np.asarray(image)
