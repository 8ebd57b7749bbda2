"""The paint: the real engine carries each digest into its own image, and one that is misplaced is seen."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from engine.request import GeneratedImage, GenerationRequest
from tests.chaos.mutants import MUTANTS
from tests.chaos.painting import SIDE, PaintingEngine, digest_of, painting_model, read
from tests.unit.engine.fakes import FakeModel

NUM_REQUESTS = 24


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def draw(model: FakeModel, requests: list[GenerationRequest]) -> list[GeneratedImage]:
    engine = PaintingEngine({"tiny": model}, {"tiny": {SIDE * SIDE: 16}}, determinism="exact")
    handles = [engine.submit(one) for one in requests]
    while not engine.is_idle:
        engine.tick()
    return [handle.future.result() for handle in handles]


@pytest.fixture
def requests() -> list[GenerationRequest]:
    rng = random.Random(1)
    return [
        GenerationRequest(
            "tiny",
            prompt="a picture",
            width=SIDE,
            height=SIDE,
            num_inference_steps=rng.choice((2, 4, 8)),
            guidance_scale=rng.choice((1.0, 2.0)),
            seed=number,
            account=f"acc_{number % 2}",
            job_id=f"job_{number}",
        )
        for number in range(NUM_REQUESTS)
    ]


def is_own(request: GenerationRequest, image: GeneratedImage) -> bool:
    try:
        return read(png(image.pixels)) == digest_of(request.account, request.job_id, request.seed)
    except ValueError:
        return False


def test_each_image_shows_the_digest_of_its_own_request(requests: list[GenerationRequest]) -> None:
    model = painting_model()
    images = draw(model, requests)
    assert max(model.step_sizes) > 4, "they were drawn together"
    assert all(is_own(one, image) for one, image in zip(requests, images, strict=True))


def test_rows_that_are_scattered_off_by_one_are_seen(requests: list[GenerationRequest]) -> None:
    model = painting_model()
    MUTANTS["scatter off by one"](model)
    images = draw(model, requests)
    assert sum(not is_own(one, image) for one, image in zip(requests, images, strict=True)) > 4


def test_an_image_of_something_else_shows_no_digest() -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    with pytest.raises(ValueError, match="more than one colour"):
        read(png(pixels))
    one_colour = np.zeros((SIDE, SIDE, 3), np.uint8)
    one_colour[8:16, 8:16] = 7
    with pytest.raises(ValueError, match="repeats no digest"):
        read(png(one_colour))
