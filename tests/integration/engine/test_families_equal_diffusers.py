"""Every family's image is that of diffusers' own pipeline, in mixed company, loaded as a user's folder is."""

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
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
)

from engine.engine import Engine
from engine.load import ModelSpec, load_engine
from engine.request import GenerationRequest, SchedulerSpec, scheduler_named
from tests.integration.engine.tiny_families import build


class Kind(NamedTuple):
    family: str
    changes: dict[str, Any]  # how the tiny pipeline differs from its family's plain one
    load: dict[str, Any]  # what diffusers must be told to load it
    call: dict[str, Any]  # what diffusers' pipeline must be told besides the request
    scheduler: str = "euler"  # as published, where that is one of ours


# As published with Stable Diffusion 1.5: a sampler that is not ours, an index that names what is left out.
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
    "lcm": Kind(
        "stable_diffusion", {"pipeline_class": LatentConsistencyModelPipeline, **DISTILLED}, {}, {}, "lcm"
    ),
    "sdxl": Kind("stable_diffusion_xl", {}, {}, {}),
    "sdxl-empty-is-text": Kind("stable_diffusion_xl", {"force_zeros_for_empty_prompt": False}, {}, {}),
    "lcm-sdxl": Kind("stable_diffusion_xl", DISTILLED, {}, {}, "lcm"),
    "sd3": Kind("stable_diffusion_3", {}, {}, {}, "flow_match_euler"),
    "sd3-without-t5": Kind(
        "stable_diffusion_3",
        {"has_t5": False},
        {"text_encoder_3": None, "tokenizer_3": None},
        {},
        "flow_match_euler",
    ),
    "pixart-alpha": Kind("pixart", {}, {}, {**AS_ASKED, "clean_caption": False}),
    "pixart-sigma": Kind("pixart", {"is_sigma": True}, {}, {**AS_ASKED, "clean_caption": False}, "dpmpp_2m"),
    "sana": Kind("sana", {}, {}, AS_ASKED, "dpmpp_2m"),
    "sana-flow": Kind(
        "sana", {"scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0)}, {}, AS_ASKED, "flow_match_euler"
    ),
    "flux-dev": Kind("flux", {}, {}, {}, "flow_match_euler"),
    "flux-schnell": Kind(
        "flux", {"guidance_embeds": False}, {}, {"max_sequence_length": 256}, "flow_match_euler"
    ),
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
CLASSES: dict[str, Any] = {
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
    "flow_match_euler": FlowMatchEulerDiscreteScheduler,
}
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
        scheduler=scheduler_named(KINDS[kind].scheduler),
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """diffusers' own, and the folders that they were read from: what the engine is compared with."""
    loaded = {}
    for name, kind in KINDS.items():
        folder = tmp_path_factory.mktemp(name)
        made = build(kind.family, folder, **kind.changes)
        made.save_pretrained(folder / "pipeline")
        if name == "sd-1.5":
            change(folder / "pipeline" / "model_index.json", LEFT_OUT)
        if name == "pixart-alpha":  # as published, from before its class had a name of its own
            change(folder / "pipeline" / "model_index.json", {"transformer": ["diffusers", OLD_CLASS]})
            change(folder / "pipeline" / "transformer" / "config.json", {"_class_name": OLD_CLASS})
        loaded[name] = type(made).from_pretrained(folder / "pipeline", dtype=torch.float32, **kind.load)
        if name == "sd-1.5":
            assert type(loaded[name].scheduler) is PNDMScheduler
        if kind.scheduler == "euler":
            loaded[name].scheduler = EulerDiscreteScheduler.from_config(loaded[name].scheduler.config)
        loaded[name].set_progress_bar_config(disable=True)
    return loaded


def change(path: Path, entries: dict[str, Any]) -> None:
    """Set these entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.fixture(scope="module")
def engine(pipelines: dict[str, Any]) -> Iterator[Engine]:
    """One engine with all of them; the test turns it, so that requests run side by side."""
    before = torch.get_num_threads()
    specs = [
        ModelSpec(name, str(Path(pipeline.name_or_path)), KINDS[name].family)
        for name, pipeline in pipelines.items()
    ]
    limits = {name: {64 * 128: 16} for name in KINDS}
    yield load_engine(specs, device="cpu:0", row_limits=limits, num_threads=1)
    torch.set_num_threads(before)


def theirs(pipeline: Any, one: GenerationRequest, call: dict[str, Any]) -> np.ndarray:
    """The image that the pipeline itself draws."""
    if "Flux" not in type(pipeline).__name__:  # its negative prompt is for another kind of guidance
        is_text = "PixArt" in type(pipeline).__name__ or "Sana" in type(pipeline).__name__  # with no `None`
        call = {**call, "negative_prompt": one.negative_prompt or ("" if is_text else None)}
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
    requests = {way: request(kind, **changes) for way, changes in WAYS.items()}
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
    assert len(images) == len(WAYS) - may_be_equal, "a change that does not show proves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_batch_mates(engine: Engine, kind: str) -> None:
    one = request(kind, num_inference_steps=3)
    alone = engine.submit(one)
    while not engine.is_idle:
        engine.tick()
    mates = [
        engine.submit(replace(one, seed=seed, num_inference_steps=5 - seed, prompt="the blue star " * seed))
        for seed in range(3)
    ]
    engine.tick()
    beside = engine.submit(one)
    while not engine.is_idle:
        engine.tick()
    assert all(mate.future.done() for mate in mates)
    assert beside.future.result().mean_step_batch > 2
    same = np.array_equal(alone.future.result().pixels, beside.future.result().pixels)
    assert same or engine.promise != "exact"
    difference = np.abs(alone.future.result().pixels.astype(int) - beside.future.result().pixels.astype(int))
    assert difference.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_caches_and_cutoffs_side_by_side_leave_every_image_its_bytes(engine: Engine, kind: str) -> None:
    """Each joins a step later, so that in one forward pass some rows run full steps, others shallow ones."""
    plain = request(kind, num_inference_steps=12)
    ways = [(3, 1.0), (8, 0.5), (1, 1.0), (5, 0.7), (8, 0.3)]
    requests = [
        replace(plain, seed=seed, step_cache=interval, guidance_cutoff=cutoff, guidance_scale=2.0 + seed)
        for seed, (interval, cutoff) in enumerate(ways)
    ]
    handles, held = [], [0]
    for one in requests:
        handles.append(engine.submit(one))
        engine.tick()
        held.append(engine.step_cache_bytes)
    while not engine.is_idle:
        engine.tick()
        held.append(engine.step_cache_bytes)
    assert max(held) > 0
    assert held[-1] == 0, "what a row kept goes with it"
    images = [handle.future.result() for handle in handles]
    assert sum(image.mean_step_batch for image in images) / len(images) > 2
    shown = []
    for one, image in zip(requests, images, strict=True):
        pixels = image.pixels.tobytes()
        assert pixels == alone(engine, one) or engine.promise != "exact", one
        shown.append(pixels != alone(engine, replace(one, step_cache=1)))
    assert any(shown), "caches that never show prove nothing"


def alone(engine: Engine, one: GenerationRequest) -> bytes:
    handle = engine.submit(one)
    while not engine.is_idle:
        engine.tick()
    return handle.future.result().pixels.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_costs_a_second_row_only_where_guidance_is_applied_outside_the_model(
    engine: Engine, kind: str
) -> None:
    scales = (0.0, 1.0, 1.5, 7.5)
    num_rows = [
        engine._models.generation(request(kind, guidance_scale=scale), submitted_at=0.0, num_ticks=0).num_rows
        for scale in scales
    ]
    assert num_rows == ([1, 1, 1, 1] if kind in WITHOUT_NEGATIVE else [1, 1, 2, 2])


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


def test_the_reference_is_not_of_another_scheduler(pipelines: dict[str, Any]) -> None:
    for name, pipeline in pipelines.items():
        assert type(pipeline.scheduler) is CLASSES[KINDS[name].scheduler]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_does_not_read_is_reported(engine: Engine, kind: str) -> None:
    """A prompt beyond all encoders, one beyond those that read less, a negative one that guides nothing."""
    limits = {"sd3": 256, "pixart-alpha": 120, "pixart-sigma": 300, "flux-dev": 512, "flux-schnell": 256}
    limits |= {"sana": 299, "sana-flow": 299}  # beside the end of its instruction
    limit = limits.get(kind, 32)
    handles = [
        engine.submit(request(kind, num_inference_steps=1, **changes))
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
