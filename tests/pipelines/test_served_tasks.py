"""Every pipeline task of well-known classes, offered by one model as in a worker, in one step batch."""

from typing import Any

import numpy as np
import pytest
import torch

from catalogue.pipeline_tasks import PipelineTask
from engine.engine import Engine
from engine.errors import RequestInvalid
from engine.loading.loaded_pipeline import make_ready
from engine.loading.sibling_pipelines import pipelines_for
from engine.pipelines.pipeline_model import PipelineModel
from engine.request import GeneratedImage, GenerationRequest, SchedulerSpec
from engine.runner import image_of
from engine.self_test.first_image import check_image
from engine.self_test.self_test import Offer, find_determinism
from engine.self_test.time_budget import TimeBudget
from engine.self_test.trial_images import MODEL
from tests.pipelines.builds import built
from tests.pipelines.families import FAMILIES

# diffusers and transformers warn about changes to their own code.
pytestmark = pytest.mark.filterwarnings("ignore")
assert FAMILIES, "the family modules fill BUILDS"
SIDE = 64
LIMITS = {SIDE * SIDE: 8}
OWN = SchedulerSpec("default")
FROM_IMAGES: tuple[PipelineTask, ...] = ("text-to-image", "image-to-image", "inpainting")
OFFERED: dict[str, tuple[PipelineTask, ...]] = {
    "StableDiffusionPipeline": (*FROM_IMAGES, "control"),
    "StableDiffusionXLPipeline": (*FROM_IMAGES, "control"),
    "StableDiffusion3Pipeline": (*FROM_IMAGES, "control"),
    "FluxPipeline": (*FROM_IMAGES, "control"),
    "QwenImagePipeline": FROM_IMAGES,
    "FluxKontextPipeline": ("text-to-image", "edit"),
    "QwenImageEditPipeline": ("edit",),
    "QwenImageEditPlusPipeline": ("edit",),
    "StableDiffusionInstructPix2PixPipeline": ("edit",),
    "StableDiffusionInpaintPipeline": ("inpainting",),
}
CONTROLNETS = {
    "StableDiffusionPipeline": "StableDiffusionControlNetPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLControlNetPipeline",
    "StableDiffusion3Pipeline": "StableDiffusion3ControlNetPipeline",
    "FluxPipeline": "FluxControlNetPipeline",
}
"""The classes whose small builds have a ControlNet that fits."""
TAKES_SEVERAL = {"QwenImageEditPlusPipeline"}


def served(name: str) -> PipelineModel:
    """A model of the class with all of its tasks, loaded and self-tested."""
    torch.manual_seed(0)
    pipeline = make_ready(built(name))
    controlnet = built(CONTROLNETS[name]).controlnet if "control" in OFFERED[name] else None
    model = PipelineModel(pipeline, pipelines_for(pipeline, OFFERED[name], controlnet))
    model.learn_schedulers(SIDE, SIDE)
    for task in model.tasks:
        check_image(model, LIMITS, scheduler=OWN, size=(SIDE, SIDE), default_steps=2, task=task)
    return model


def drawn(model: PipelineModel, determinism: Any, *requests: GenerationRequest) -> list[GeneratedImage]:
    engine = Engine({MODEL: model}, {MODEL: LIMITS}, determinism=determinism, clock=lambda: 0.0)
    handles = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        engine.tick()
    engine.stop()
    return [handle.future.result(timeout=0) for handle in handles]


@torch.inference_mode()
def untouched(model: PipelineModel, request: GenerationRequest) -> np.ndarray:
    """The image of diffusers' own call with the same arguments."""
    pipeline = model._pipeline_of(request)
    torch.manual_seed(request.seed)
    return image_of(pipeline.pipeline(**pipeline.arguments(request)))


@pytest.mark.parametrize("name", OFFERED)
def test_tasks_in_mixed_batches_equal_their_runs_alone_and_the_untouched_pipelines(name: str) -> None:
    model = served(name)
    determinism = find_determinism(model, LIMITS, Offer(tasks=model.tasks), TimeBudget()).determinism
    assert not model.runs_alone
    assert determinism in ("exact", "exact within a bucket")
    assert model.takes_several_images == (name in TAKES_SEVERAL)
    plain = [
        GenerationRequest(MODEL, "a red heart", SIDE, SIDE, steps, 3.0, seed=steps, scheduler=OWN)
        for steps in (4, 5)
    ]
    requests = [model.trial(one, task) for task in model.tasks for one in plain]
    together = drawn(model, determinism, *requests)
    assert any(image.mean_step_batch > 1 for image in together)
    for request, image in zip(requests, together, strict=True):
        difference = np.abs(untouched(model, request).astype(int) - image.pixels.astype(int))
        assert difference.max() <= 2, request
        if determinism == "exact":
            [alone] = drawn(model, determinism, request)
            assert alone.pixels.tobytes() == image.pixels.tobytes(), request
    assert len({image.pixels.tobytes() for image in together}) == len(together)


def test_image_to_image_and_inpainting_share_passes_with_plain_requests_in_every_family() -> None:
    for name in ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"):
        model = served(name)
        model.runs_alone = False
        plain = GenerationRequest(MODEL, "a red heart", SIDE, SIDE, 4, 3.0, seed=1, scheduler=OWN)
        requests = [model.trial(plain, task) for task in FROM_IMAGES]
        assert [image.mean_step_batch > 2 for image in drawn(model, "exact", *requests)] == [True] * 3, name


def test_a_second_image_is_refused_where_it_would_change_nothing() -> None:
    model = served("QwenImageEditPipeline")
    plain = GenerationRequest(MODEL, "a red heart", SIDE, SIDE, 2, 1.0, seed=1, scheduler=OWN)
    with pytest.raises(RequestInvalid, match="image: a QwenImageEditPipeline takes only one image"):
        model.check(model.trial(plain, num_images=2))
    with pytest.raises(RequestInvalid, match="image: is needed: model 'tested' offers edit"):
        model.check(plain)
