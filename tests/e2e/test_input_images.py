"""Jobs of every task and adapter share step batches, and each gets the image that it would get alone."""

import io
import random
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from tests.e2e.conftest import Json, System
from tests.fixtures.pictures import picture
from tiny.scenes import read_caption, render
from tiny.styles import outline_share

PROMPT = "a large red square on a white background"
STEPS = 20


@pytest.fixture(scope="module")
def asked(system: System) -> Mapping[str, Json]:
    """One job of each kind, by what it is drawn from."""
    client = system.api.client
    scene = read_caption("a blue square left of a red circle on a white background")
    assert scene is not None
    buffer = io.BytesIO()
    render(scene, 128, random.Random(1)).save(buffer, "PNG")
    half = Image.new("L", (128, 128))
    half.paste(255, (64, 0, 128, 128))
    mask = io.BytesIO()
    half.save(mask, "PNG")
    image, mask_image = client.upload(buffer.getvalue()).id, client.upload(mask.getvalue()).id
    outline = [{"name": "outline"}]
    kinds: dict[str, dict[str, Any]] = {
        "text": {},
        "image": {"image": image, "strength": 0.75},
        "part of an image": {"image": image, "mask_image": mask_image, "strength": 1.0},
        "adapter": {"loras": outline},
        "weak adapter": {"loras": [{"name": "outline", "scale": 0.3}]},
        "image and adapter": {"image": image, "strength": 0.9, "loras": outline},
    }
    plain = {"prompt": PROMPT, "num_inference_steps": STEPS, "width": 128, "height": 128, "seed": 5}
    return {kind: {**plain, **inputs} for kind, inputs in kinds.items()}


def test_jobs_of_all_kinds_share_step_batches_and_each_image_is_that_of_its_job_alone(
    system: System, asked: Mapping[str, Json]
) -> None:
    system.wait_for_workers()
    together = [str(system.api.submit(job)["id"]) for job in (*asked.values(), *asked.values())]
    mixed = system.finish(together)
    assert [job["state"] for job in mixed] == ["succeeded"] * len(mixed), [job["error"] for job in mixed]
    # Two of a kind, one for each worker: whoever ran with more than two ran with another kind.
    assert max(job["timings"]["mean_step_batch"] for job in mixed) > 2
    alone = {}
    for kind, job in asked.items():
        (ended,) = system.finish([str(system.api.submit(job)["id"])])
        assert ended["timings"]["mean_step_batch"] == 1
        alone[kind] = ended["images"][0]["sha256"]
    assert len(set(alone.values())) == len(alone), "each is drawn from what it names"
    for kind, job in zip((*asked, *asked), mixed, strict=True):
        assert job["images"][0]["sha256"] == alone[kind], kind


def test_the_style_of_an_adapter_is_seen(system: System, asked: Mapping[str, Json]) -> None:
    scene = read_caption(PROMPT)
    assert scene is not None
    ids = [str(system.api.submit(asked[kind])["id"]) for kind in ("text", "adapter")]
    pictures = [
        Image.open(io.BytesIO(system.api.download(job["images"][0]["url"]))) for job in system.finish(ids)
    ]
    plain, outlined = (outline_share(one, scene) for one in pictures)
    assert plain < 0.5 < outlined


def test_an_image_of_another_size_is_drawn_at_its_own(system: System) -> None:
    id = system.api.client.upload(picture(96, 64)).id
    job = system.api.submit({"prompt": PROMPT, "image": id, "num_inference_steps": 4})
    (ended,) = system.finish([str(job["id"])])
    assert (ended["images"][0]["width"], ended["images"][0]["height"]) == (96, 64)
