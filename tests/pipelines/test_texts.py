"""Prompts of different lengths share passes, with real pipelines and the self-test of a worker."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from engine.engine import Engine
from engine.generation import Handle
from engine.pipelines.pipeline_model import Abilities, PipelineModel
from engine.pipelines.steady_stack import on_steady_stack
from engine.request import GeneratedImage, GenerationRequest, SchedulerSpec
from engine.self_test.self_test import Offer, find_determinism
from engine.self_test.time_budget import TimeBudget
from engine.self_test.trial_images import MODEL
from tests.pipelines.builds import built
from tests.pipelines.families import FAMILIES

assert FAMILIES, "the family modules fill BUILDS"
SIDE = 64
LIMITS = {SIDE * SIDE: 8}
PROMPTS = ("a red heart", "a yellow square on the black background")

# diffusers and transformers warn about changes to their own code.
pytestmark = pytest.mark.filterwarnings("ignore")


def after_its_test(name: str) -> tuple[PipelineModel, str]:
    """A self-tested model and its determinism level."""
    model = PipelineModel(built(name))
    found = find_determinism(model, LIMITS, Offer(), TimeBudget())
    return model, found.determinism


def asked(number: int) -> GenerationRequest:
    own = SchedulerSpec("default")
    return GenerationRequest(MODEL, PROMPTS[number], SIDE, SIDE, 4, 3.0, seed=number, scheduler=own)


def drawn(model: PipelineModel, *numbers: int) -> list[GeneratedImage]:
    """The images of these requests, submitted together."""
    engine = Engine({MODEL: model}, {MODEL: LIMITS}, determinism="exact", clock=lambda: 0.0)
    handles: list[Handle] = [engine.submit(asked(number)) for number in numbers]
    while not engine.is_idle:
        engine.tick()
    engine.stop()
    return [handle.future.result(timeout=0) for handle in handles]


@on_steady_stack
@torch.inference_mode()
def untouched(model: PipelineModel, number: int) -> np.ndarray:
    """The pixels of a call whose text is not padded."""
    padding, model.text_padding = model.text_padding, None
    try:
        return drawn(model, number)[0].pixels
    finally:
        model.text_padding = padding


@pytest.mark.parametrize("name", ["DreamLitePipeline", "QwenImagePipeline", "ErnieImagePipeline"])
def test_prompts_of_two_lengths_share_every_pass_and_each_image_is_that_of_its_own_run(name: str) -> None:
    model, determinism = after_its_test(name)
    assert (determinism, model.runs_alone) == ("exact", False)
    together = drawn(model, 0, 1)
    assert [image.mean_step_batch for image in together] == [2.0, 2.0]
    for number, image in enumerate(together):
        assert drawn(model, number)[0].pixels.tobytes() == image.pixels.tobytes()
        difference = np.abs(untouched(model, number).astype(int) - image.pixels.astype(int))
        assert difference.max() <= 1


def test_prompts_stay_apart_where_the_model_takes_a_mask_and_reads_past_it() -> None:
    """Kandinsky 3 averages over all tokens of a text, padding included."""
    model, _ = after_its_test("Kandinsky3Pipeline")
    assert (model.text_padding, model.runs_alone) == (None, False)
    together = drawn(model, 0, 1)
    assert [image.mean_step_batch for image in together] == [1.0, 1.0]
    for number, image in enumerate(together):
        assert drawn(model, number)[0].pixels.tobytes() == image.pixels.tobytes()


def test_padding_that_shows_only_in_mixed_batches_is_given_up_and_batching_is_not() -> None:
    def leak(_: Any, __: Any, given: dict[str, Any], output: Any) -> Any:
        ends_in_padding = not given["encoder_attention_mask"][:, -1].any()
        is_shared = len(given["sample"]) > 2
        return (output[0] + 0.5, *output[1:]) if ends_in_padding and is_shared else output

    hook = built("DreamLitePipeline").unet.register_forward_hook(leak, with_kwargs=True)
    try:
        model, _ = after_its_test("DreamLitePipeline")
        assert (model.text_padding, model.runs_alone) == (None, False)
        assert [image.mean_step_batch for image in drawn(model, 0, 0)] == [2.0, 2.0]
    finally:
        hook.remove()


def test_a_kept_self_test_pads_texts_as_the_test_did() -> None:
    model, _ = after_its_test("DreamLitePipeline")
    kept = json.loads(json.dumps(asdict(model.abilities)))
    later = PipelineModel(built("DreamLitePipeline"))
    later.abilities, later.buckets = Abilities.of_plain(kept), model.buckets
    for one, other in zip(drawn(later, 0, 1), drawn(model, 0, 1), strict=True):
        assert one.mean_step_batch == 2.0
        assert one.pixels.tobytes() == other.pixels.tobytes()
