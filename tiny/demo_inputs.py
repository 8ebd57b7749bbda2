"""The last row of the demo: jobs with an input image and jobs with a LoRA.

Owns the list of these jobs and how their images are judged. It submits only what the server's list of models
says it offers.
"""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from client.calotype import Client, Job, Model
from tiny.scenes import read_caption, render
from tiny.styles import fill_outlines
from tiny.verdicts import Verdict, judge

STARTS_WITH = "a blue square left of a red circle on a white background"
REDRAWN = "a purple heart left of a red circle on a white background"
PAINTED = "a blue square left of a green star on a white background"
OUTLINED = "a large green star on a white background"
LORA = "outline"
SIDE = 128
SEED = 11


@dataclass(frozen=True)
class FromInputs:
    """A job of the row, with its inputs in words."""

    job: Job
    words: str


def submit_from_inputs(client: Client) -> Iterator[FromInputs]:
    """Submit jobs for image-to-image, inpainting and the LoRA `outline`, if the default model has them."""
    model = next(model for model in client.models() if model.raw["default"])
    tasks = model.raw["tasks"]
    if "image-to-image" in tasks or "inpainting" in tasks:
        image = client.upload(_file(input_picture())).id
    if "image-to-image" in tasks:
        yield _submit(client, model, REDRAWN, "image-to-image, strength 0.8", image=image, strength=0.8)
    if "inpainting" in tasks:
        mask = client.upload(_file(_right_half())).id
        words = "inpainting, the right half"
        yield _submit(client, model, PAINTED, words, image=image, mask_image=mask, strength=1.0)
    if LORA in [lora["name"] for lora in model.raw["loras"]]:
        for scale in (1.0, 0.0):
            adapters = [{"name": LORA, "scale": scale}]
            yield _submit(client, model, OUTLINED, f"LoRA {LORA}, scale {scale:g}", loras=adapters)


def input_picture() -> Image.Image:
    """The input image of the row."""
    scene = read_caption(STARTS_WITH)
    assert scene is not None
    return render(scene, SIDE, random.Random(SEED))


def verdict_of(picture: Image.Image, job: Job) -> Verdict:
    """The checker's verdict on an image; outlines are filled first, so that it can see their shapes."""
    has_outlines = any(lora["name"] == LORA and lora["scale"] for lora in job.loras)
    return judge(fill_outlines(picture) if has_outlines else picture, job.prompt)


def _submit(client: Client, model: Model, prompt: str, words: str, **inputs: Any) -> FromInputs:
    job = client.submit(prompt, model=model.name, width=SIDE, height=SIDE, seed=SEED, **inputs)
    return FromInputs(job, words)


def _right_half() -> Image.Image:
    """A mask; white parts are redrawn."""
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).rectangle((SIDE // 2, 0, SIDE, SIDE), 255)
    return mask


def _file(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
