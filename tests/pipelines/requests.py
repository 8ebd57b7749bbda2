"""Makes the arguments of a small request from its number: text, steps, scales, seed and images all differ.

Owns what a user may vary. The signature of a pipeline's `__call__` says which of these it takes; its build
has what it needs besides.
"""

import inspect
from typing import Any

import numpy
import torch
from PIL import Image

from tests.pipelines.builds import BUILDS, built

PROMPTS = ("a red heart", "a blue star", "the green ring", "a yellow square on the black background")
NEGATIVE_PROMPTS = ("black", "white", "a white square")
SCALES = (2.0, 3.5, 5.0, 7.5)


def arguments(name: str, number: int) -> dict[str, Any]:
    """Arguments of request `number` to the pipeline class `name`; its generator is new at every call."""
    build = BUILDS[name]
    takes = inspect.signature(built(name).__call__).parameters
    given = {key: value for key, value in _everything(number, build.size).items() if key in takes}
    for key, value in build.arguments.items():
        given[key] = value(number) if callable(value) else value
    return given


def seed(number: int) -> int:
    """The seed of request `number`, which may be negative."""
    return 1000 + number


def picture(number: int, size: int) -> Image.Image:
    """A smooth picture in colours that `number` chooses."""
    colours = numpy.random.default_rng(seed(number)).integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    return Image.fromarray(colours).resize((size, size), Image.Resampling.BICUBIC)


def sometimes_pictures(number: int) -> list[Image.Image] | None:
    """Pictures for a pipeline with an optional image: every other request has one."""
    return [picture(number, 64)] if number % 2 else None


def mask(number: int, size: int) -> Image.Image:
    """A white rectangle, the part to paint, on black."""
    pixels = numpy.zeros((size, size), dtype=numpy.uint8)
    start = size // 8 * (number % 3)
    pixels[start : start + size // 2, size // 4 :] = 255
    return Image.fromarray(pixels)


def _everything(number: int, size: int) -> dict[str, Any]:
    scale = SCALES[number % len(SCALES)]
    return {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "negative_prompt": NEGATIVE_PROMPTS[number % len(NEGATIVE_PROMPTS)],
        "num_inference_steps": 2 + number % 4,
        "guidance_scale": scale,
        "true_cfg_scale": scale,
        "image_guidance_scale": 1.0 + 0.25 * (number % 3),
        "pag_scale": 1.0 + number % 3,
        "generator": torch.Generator("cpu").manual_seed(seed(number)),
        "height": size,
        "width": size,
        "image": picture(number, size),
        "mask_image": mask(number, size),
        "control_image": picture(number + 100, size),
        "control_mask": mask(number + 1, size),
        "controlnet_conditioning_scale": 0.5 + 0.25 * (number % 3),
        "strength": (0.7, 1.0, 0.85)[number % 3],
        "output_type": "np",
    }
