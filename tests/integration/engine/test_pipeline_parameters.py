"""Parameters that only some pipelines have work in mixed batches as in diffusers' own call."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from engine.engine import Engine
from engine.pipelines.pipeline_model import PipelineModel
from engine.request import GenerationRequest, SchedulerSpec
from settings import ROOT

SIDE = 64
PROMPT, NEGATIVE_PROMPT = "a red heart", "a blue star"


@pytest.mark.parametrize(
    "own", [{"clip_skip": 1}, {"guidance_rescale": 0.7}], ids=lambda own: next(iter(own))
)
def test_a_parameter_of_the_pipelines_own_call_does_what_it_does_there(own: dict[str, Any]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(
        ROOT / "models" / "tiny", dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    engine = Engine(
        {"m": PipelineModel(pipeline)}, {"m": {SIDE * SIDE: 8}}, determinism="exact", clock=lambda: 0
    )
    requests = [asked(0, own), asked(1, {}), asked(2, own), asked(0, {})]
    handles = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        engine.tick()
    images = [handle.future.result(timeout=0) for handle in handles]
    assert max(image.mean_step_batch for image in images) > 1
    if not hasattr(pipeline.text_encoder, "text_model"):  # as diffusers expects CLIP's to be
        vars(pipeline.text_encoder)["text_model"] = pipeline.text_encoder
    for request, image in zip(requests, images, strict=True):
        assert abs(theirs(pipeline, request).astype(int) - image.pixels).max() <= 2
    assert abs(images[0].pixels.astype(int) - images[3].pixels).max() > 10, (
        "what does not show proves nothing"
    )


def asked(seed: int, own: dict[str, Any]) -> GenerationRequest:
    return GenerationRequest(
        "m",
        PROMPT,
        SIDE,
        SIDE,
        4,
        3.0,
        seed,
        NEGATIVE_PROMPT,
        scheduler=SchedulerSpec("default"),
        pipeline_parameters=own,
    )


@torch.inference_mode()
def theirs(pipeline: Any, request: GenerationRequest) -> np.ndarray:
    image = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        width=SIDE,
        height=SIDE,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        **request.parameters.pipeline_parameters,
    ).images[0]
    return np.asarray(image)
