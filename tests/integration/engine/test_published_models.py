"""Published models draw in mixed batches what diffusers' own pipeline draws with them."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
)

from engine.engine import Engine
from engine.loading.load import ModelSpec, load_engine
from engine.request import GenerationRequest, SchedulerSpec
from tests.integration.engine.tiny_families import build


class Kind(NamedTuple):
    builder: str
    changes: dict[str, Any]  # how the tiny pipeline differs from the plain one of its builder
    load: dict[str, Any]  # arguments with which diffusers loads it
    call: dict[str, Any]  # arguments of diffusers' pipeline besides those of the request


# As published with Stable Diffusion 1.5, whose index names what is left out.
PNDM = PNDMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    skip_prk_steps=True,
    set_alpha_to_one=False,
    steps_offset=1,
)
LCM = LCMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
)
DISTILLED = {"scheduler": LCM, "time_cond_proj_dim": 16}  # guidance is an input of the UNet
AS_ASKED = {"use_resolution_binning": False}  # no size but the one that was asked for
LEFT_OUT = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}
OLD_CLASS = "Transformer2DModel"
KINDS = {
    "sd-1.5": Kind("stable_diffusion", {"scheduler": PNDM}, dict.fromkeys(LEFT_OUT), {}),
    "sd-turbo": Kind("stable_diffusion", {}, {}, {}),
    "lcm": Kind("stable_diffusion", {"pipeline_class": LatentConsistencyModelPipeline, **DISTILLED}, {}, {}),
    "sdxl": Kind("stable_diffusion_xl", {}, {}, {}),
    "sdxl-empty-is-text": Kind("stable_diffusion_xl", {"force_zeros_for_empty_prompt": False}, {}, {}),
    "lcm-sdxl": Kind("stable_diffusion_xl", DISTILLED, {}, {}),
    "sd3": Kind("stable_diffusion_3", {}, {}, {}),
    "sd3-without-t5": Kind(
        "stable_diffusion_3",
        {"has_t5": False},
        {"text_encoder_3": None, "tokenizer_3": None},
        {},
    ),
    "pixart-alpha": Kind("pixart", {}, {}, {**AS_ASKED}),
    "pixart-sigma": Kind("pixart", {"is_sigma": True}, {}, {**AS_ASKED}),
    "sana": Kind("sana", {}, {}, AS_ASKED),
    "sana-flow": Kind("sana", {"scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0)}, {}, AS_ASKED),
    "flux-dev": Kind("flux", {}, {}, {}),
    "flux-schnell": Kind("flux", {"guidance_embeds": False}, {}, {}),
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one-step": {"num_inference_steps": 1},
    "unguided": {"guidance_scale": 1.0, "negative_prompt": ""},
    "negative": {"negative_prompt": "blue"},
    "wordy": {"prompt": "a large red heart on the white background, the blue star"},
    "wide": {"width": 96, "height": 64},
    "tall-strong": {"width": 64, "height": 128, "guidance_scale": 7.5},
}
IMPOSSIBLE = (("pixart-alpha", "one-step"),)
"""At one step that pipeline reads the predicted image, which the scheduler it is published with gives not."""
READS_LESS = dict.fromkeys(("sd3", "flux-dev", "flux-schnell"), ("CLIP",))
WITHOUT_NEGATIVE = ("lcm", "lcm-sdxl", "flux-dev", "flux-schnell")  # guidance is an input, or there is none


def request(kind: str, **changes: Any) -> GenerationRequest:
    plain = GenerationRequest(
        model=kind,
        prompt="a red heart",
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=3.0,
        seed=11,
        scheduler=SchedulerSpec("default"),
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """diffusers' own, and the folders that they were read from: what the engine is compared with."""
    loaded = {}
    for name, kind in KINDS.items():
        folder = tmp_path_factory.mktemp(name)
        made = build(kind.builder, folder, **kind.changes)
        made.save_pretrained(folder / "pipeline")
        if name == "sd-1.5":
            change(folder / "pipeline" / "model_index.json", LEFT_OUT)
        if name == "pixart-alpha":  # as published, from before its class had a name of its own
            change(folder / "pipeline" / "model_index.json", {"transformer": ["diffusers", OLD_CLASS]})
            change(folder / "pipeline" / "transformer" / "config.json", {"_class_name": OLD_CLASS})
        loaded[name] = type(made).from_pretrained(folder / "pipeline", dtype=torch.float32, **kind.load)
        if name == "sd-1.5":
            assert type(loaded[name].scheduler) is PNDMScheduler
        loaded[name].set_progress_bar_config(disable=True)
    return loaded


def change(path: Path, entries: dict[str, Any]) -> None:
    """Set these entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.fixture(scope="module")
def engine(pipelines: dict[str, Any]) -> Iterator[Engine]:
    """One engine with all of them; the test turns it, so that requests run side by side."""
    before = torch.get_num_threads()
    specs = [ModelSpec(name, str(Path(pipeline.name_or_path))) for name, pipeline in pipelines.items()]
    limits = {name: {96 * 96: 16} for name in KINDS}
    # The shortest self-test: images alone and in one batch.
    yield load_engine(specs, device="cpu:0", row_limits=limits, num_threads=1, self_test_seconds=0)
    torch.set_num_threads(before)


def theirs(pipeline: Any, one: GenerationRequest, call: dict[str, Any]) -> np.ndarray:
    """The image that the pipeline itself draws."""
    if one.negative_prompt and "negative_prompt" in inspect.signature(pipeline.__call__).parameters:
        call = {**call, "negative_prompt": one.negative_prompt}
    image = pipeline(
        one.prompt,
        width=one.width,
        height=one.height,
        num_inference_steps=one.num_inference_steps,
        guidance_scale=one.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(one.seed),
        output_type="pil",
        **call,
    ).images[0]
    return np.asarray(image)


@pytest.mark.parametrize("kind", KINDS)
def test_images_drawn_side_by_side_equal_those_of_the_diffusers_pipeline(
    engine: Engine, pipelines: dict[str, Any], kind: str
) -> None:
    """At most 2/255 anywhere and 0.2/255 on average, with other steps, scales and seeds in the batch."""
    ways = {way: changes for way, changes in WAYS.items() if (kind, way) not in IMPOSSIBLE}
    requests = {way: request(kind, **changes) for way, changes in ways.items()}
    handles = {way: engine.submit(one) for way, one in requests.items()}
    while not engine.is_idle:
        engine.tick()
    images = set()
    for way, one in requests.items():
        expected = theirs(pipelines[kind], one, KINDS[kind].call)
        image = handles[way].future.result()
        assert image.pixels.shape == expected.shape == (one.height, one.width, 3), way
        assert expected.std() > 10, "a flat image would prove nothing"
        assert 5 < np.median(expected) < 250, "a saturated image would hide differences"
        difference = np.abs(image.pixels.astype(int) - expected.astype(int))
        assert difference.max() <= 2, way
        assert difference.mean() <= 0.2, way
        images.add(image.pixels.tobytes())
    may_be_equal = (kind in WITHOUT_NEGATIVE) + (kind == "flux-schnell")  # which reads no scale either
    assert len(images) == len(ways) - may_be_equal, "a change that does not show proves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_costs_a_second_row_only_where_guidance_is_applied_outside_the_model(
    engine: Engine, kind: str
) -> None:
    model, rows, guesses = engine._models.by_name[kind], [], []
    for scale in (0.0, 1.0, 1.5, 7.5):
        with torch.inference_mode():
            call = model.begin(request(kind, guidance_scale=scale))
            model.exchange.run_to_denoiser(call)
        assert call.parked is not None
        rows.append(call.parked.num_rows)
        guesses.append(2 if model.needs_guidance_row(scale) else 1)
        call.end()
    assert rows == guesses == ([1, 1, 1, 1] if kind in WITHOUT_NEGATIVE else [1, 1, 2, 2])


def test_flow_matching_shift_equals_the_schedulers_own(engine: Engine, pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["sd3"]
    own = pipeline.scheduler
    one = request("sd3", scheduler=SchedulerSpec("flow_match_euler", shift=1.5))
    handle = engine.submit(one)
    while not engine.is_idle:
        engine.tick()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(own.config, shift=1.5)
    expected = theirs(pipeline, one, {})
    pipeline.scheduler = own
    assert np.abs(handle.future.result().pixels.astype(int) - expected.astype(int)).max() <= 2


def test_dpm_solver_along_a_flow_equals_diffusers(engine: Engine, pipelines: dict[str, Any]) -> None:
    """As a user of the pipeline would set it, where it is published with another."""
    pipeline = pipelines["sd3"]
    own = pipeline.scheduler
    one = request("sd3", scheduler=SchedulerSpec("dpmpp_2m"), num_inference_steps=6)
    handle = engine.submit(one)
    while not engine.is_idle:
        engine.tick()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        own.config, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=own.config.shift
    )
    expected = theirs(pipeline, one, {})
    pipeline.scheduler = own
    assert np.abs(handle.future.result().pixels.astype(int) - expected.astype(int)).max() <= 2


def test_euler_along_a_flow_takes_the_shift_of_the_solver_that_the_model_came_with(
    engine: Engine, pipelines: dict[str, Any]
) -> None:
    pipeline = pipelines["sana"]
    own = pipeline.scheduler
    one = request("sana", scheduler=SchedulerSpec("flow_match_euler"))
    handle = engine.submit(one)
    while not engine.is_idle:
        engine.tick()
    assert own.config.flow_shift == 3.0
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected = theirs(pipeline, one, AS_ASKED)
    pipeline.scheduler = own
    assert np.abs(handle.future.result().pixels.astype(int) - expected.astype(int)).max() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_does_not_read_is_reported(engine: Engine, kind: str) -> None:
    """A prompt beyond all encoders, one beyond those that read less, a negative one that guides nothing."""
    limits = {"sd3": 256, "pixart-alpha": 120, "pixart-sigma": 300, "flux-dev": 512, "flux-schnell": 512}
    limits |= {"sana": 299, "sana-flow": 299}  # beside the end of its instruction
    limit = limits.get(kind, 32)
    handles = [
        engine.submit(request(kind, num_inference_steps=2, **changes))
        for changes in (
            {"prompt": "a " * (limit + 8)},
            {"prompt": "a " * (limit - 8)},
            {"negative_prompt": "blue", "guidance_scale": 1.0},
        )
    ]
    while not engine.is_idle:
        engine.tick()
    long, short, negative = (handle.future.result().warnings for handle in handles)
    reads_less = READS_LESS.get(kind, ())  # of which each has a warning of its own, and before
    assert [(warning.code, warning.field) for warning in long] == [("prompt_cut", "prompt")] * (
        1 + len(reads_less)
    )
    assert re.search(rf"reads the first {limit - 1}|first {limit - 2}", long[-1].detail)
    assert all('" was not used' in warning.detail for warning in long)
    assert [warning.detail.partition("text encoder ")[2].split()[0] for warning in short] == list(reads_less)
    assert [(warning.code, warning.field) for warning in negative] == [
        ("negative_prompt_unused", "negative_prompt")
    ]


def test_a_prompt_that_is_cut_reaches_no_log(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    for kind in KINDS:
        engine.submit(request(kind, num_inference_steps=1, prompt="secret " * 600))
    while not engine.is_idle:
        engine.tick()
    assert "secret" not in caplog.text
