"""The engine draws the image of diffusers' own pipeline for every kind of request."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from engine.engine import Engine
from engine.pipelines.truncation import MAX_SHOWN_CHARACTERS
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
    "euler-ancestral": {"scheduler": SchedulerSpec("euler_ancestral")},
    "euler-ancestral-leading": {"scheduler": SchedulerSpec("euler_ancestral", spacing="leading")},
    "dpmpp-2m": {"scheduler": SchedulerSpec("dpmpp_2m")},
    "dpmpp-2m-long": {"scheduler": SchedulerSpec("dpmpp_2m"), "num_inference_steps": 16},
    "dpmpp-2m-karras": {"scheduler": SchedulerSpec("dpmpp_2m", karras=True)},
    "dpmpp-2m-trailing": {"scheduler": SchedulerSpec("dpmpp_2m", spacing="trailing")},
    "lcm": {"scheduler": SchedulerSpec("lcm"), "num_inference_steps": 4},
    "lcm-one-step": {"scheduler": SchedulerSpec("lcm"), "num_inference_steps": 1},
    "ddim-hd": {"width": 192, "height": 192, "num_inference_steps": 3},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_image_equals_that_of_the_diffusers_pipeline(
    engine: Engine, pipelines: dict[str, StableDiffusionPipeline], model: str, way: str
) -> None:
    """At most 2/255 anywhere and 0.2/255 on average, although the engine's forward pass has other rows."""
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
    """The image is that of the shortened prompt, as in diffusers, and a warning says what was cut."""
    read, dropped = "a red heart and " * 7 + "a red", "heart and a blue star and a ring"
    request = replace(REQUEST, model=MODELS[0], prompt=f"{read} {dropped}", num_inference_steps=2)
    image = engine.submit(request).future.result(timeout=60)
    (warning,) = image.warnings
    assert (warning.code, warning.field) == ("prompt_cut", "prompt")
    assert warning.detail == (
        f'it has 38 tokens and the text encoder reads the first 30: "{dropped}" was not used'
    )
    shorter = engine.submit(replace(request, prompt=read)).future.result(timeout=60)
    assert (shorter.pixels == image.pixels).all(), "what is said to be unused changed the image"
    assert shorter.warnings == ()
    expected = diffusers_image(pipelines[MODELS[0]], request)
    assert np.abs(image.pixels.astype(int) - expected.astype(int)).max() <= 2


def test_each_text_that_is_cut_has_its_own_warning_and_a_long_loss_is_shown_by_its_beginning(
    engine: Engine,
) -> None:
    long = "a red heart and " * 40
    request = replace(REQUEST, model=MODELS[0], prompt=long, negative_prompt=f"a\n{long}")
    image = engine.submit(replace(request, num_inference_steps=1)).future.result(timeout=60)
    assert [warning.field for warning in image.warnings] == ["prompt", "negative_prompt"]
    for warning in image.warnings:
        _, shown, rest = warning.detail.split('"')
        assert len(shown) == MAX_SHOWN_CHARACTERS
        assert shown.endswith("…")
        assert rest == " was not used"
        assert shown.isprintable()


def test_a_word_that_is_read_in_part_is_shown_as_the_part_that_was_not(engine: Engine) -> None:
    """A word outside the vocabulary is many tokens, so the limit can cut it."""
    request = replace(REQUEST, model=MODELS[0], prompt="a red star " * 9 + "zyxwvut", num_inference_steps=1)
    (warning,) = engine.submit(request).future.result(timeout=60).warnings
    assert '"…wvut" was not used' in warning.detail
