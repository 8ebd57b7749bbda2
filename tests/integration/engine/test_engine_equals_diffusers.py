"""The engine's image is the image of diffusers' own pipeline, for every way of asking."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from engine.engine import Engine
from engine.request import GenerationRequest, SchedulerSpec
from tests.integration.engine.reference import MODELS, diffusers_image

# diffusers' Euler scheduler calls numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

REQUEST = GenerationRequest(
    model="",
    prompt="a red heart on a white background",
    negative_prompt="blue",
    width=64,
    height=64,
    num_inference_steps=6,
    guidance_scale=4.0,
    seed=11,
)
WAYS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "euler": {"scheduler": SchedulerSpec("euler")},
    "ddim-unguided": {"guidance_scale": 1.0, "negative_prompt": ""},
    "euler-unguided": {"scheduler": SchedulerSpec("euler"), "guidance_scale": 1.0},
    "ddim-wide": {"width": 128, "height": 72},
    "euler-tall": {"scheduler": SchedulerSpec("euler"), "width": 72, "height": 128},
    "ddim-one-step": {"num_inference_steps": 1},
    "ddim-eta": {"scheduler": SchedulerSpec(eta=0.5)},
    "euler-karras": {"scheduler": SchedulerSpec("euler", karras=True)},
    "euler-linspace": {"scheduler": SchedulerSpec("euler", spacing="linspace")},
    "ddim-hd": {"width": 192, "height": 192, "num_inference_steps": 3},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_image_equals_that_of_the_diffusers_pipeline(
    engine: Engine, pipelines: dict[str, StableDiffusionPipeline], model: str, way: str
) -> None:
    """At most 2/255 anywhere and 0.2/255 on average, although our forward pass has other rows beside it."""
    request = replace(REQUEST, model=model, **WAYS[way])
    expected = diffusers_image(pipelines[model], request)
    image = engine.submit(request).future.result(timeout=60)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.shape == expected.shape == (request.height, request.width, 3)
    assert expected.std() > 10, "a flat image would prove nothing"
    difference = np.abs(image.pixels.astype(int) - expected.astype(int))
    assert difference.max() <= 2
    assert difference.mean() <= 0.2


def test_prompt_beyond_the_encoders_limit_is_reported(
    engine: Engine, pipelines: dict[str, StableDiffusionPipeline]
) -> None:
    """The image is that of the shortened prompt, as with diffusers, and a warning says that it was cut."""
    request = replace(REQUEST, model=MODELS[0], prompt="a red heart and " * 20, num_inference_steps=2)
    image = engine.submit(request).future.result(timeout=60)
    assert image.warnings == (
        "prompt: the prompt has 82 tokens and was cut to the 32 that the text encoder reads",
    )
    expected = diffusers_image(pipelines[MODELS[0]], request)
    assert np.abs(image.pixels.astype(int) - expected.astype(int)).max() <= 2
