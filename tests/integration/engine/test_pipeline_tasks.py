"""Pipeline tasks: one set of weights draws all of them, mixed in one step batch.

The model is the shipped one, with a ControlNet of random weights beside it.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from catalogue.pipeline_tasks import PipelineTask
from engine.engine import Engine
from engine.errors import Canceled, LoadError, RequestInvalid
from engine.generation import Handle
from engine.loaded import Models
from engine.loading.load import LoadedModels, ModelSpec, load_models
from engine.pipelines.pipeline_model import PipelineModel
from engine.request import GeneratedImage, GenerationRequest, SchedulerSpec
from settings import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # warnings about diffusers' own code

SIDE = 64
LIMITS = {SIDE * SIDE: 12}
TASKS: tuple[PipelineTask, ...] = ("text-to-image", "image-to-image", "inpainting", "control")
CLASSES = {
    "text-to-image": StableDiffusionPipeline,
    "image-to-image": StableDiffusionImg2ImgPipeline,
    "inpainting": StableDiffusionInpaintPipeline,
    "control": StableDiffusionControlNetPipeline,
}
DDIM = SchedulerSpec("ddim")
SCHEDULERS = (
    DDIM,
    SchedulerSpec("euler"),
    SchedulerSpec("dpmpp_2m", karras=True),
    SchedulerSpec("euler_ancestral"),
)
PROMPTS = ("a red heart on a white background", "two blue stars", "a green ring beside a yellow square")


@pytest.fixture(scope="module")
def controlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random ControlNet for the shipped model, large enough to show in the image."""
    torch.manual_seed(3)
    unet = StableDiffusionPipeline.from_pretrained(
        ROOT / "models/tiny", safety_checker=None, dtype=torch.float32
    ).unet
    made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    for weight in made.parameters():
        if not weight.any():  # published as zeros, which would hide all that is before them
            torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("controlnet")
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(controlnet: Path) -> Iterator[LoadedModels]:
    before = torch.get_num_threads()
    parameters = {"padding_mask_crop": 8, "controlnet_conditioning_scale": 0.5}
    spec = ModelSpec(
        "tiny",
        str(ROOT / "models/tiny"),
        tasks=TASKS,
        controlnet=str(controlnet),
        schedulers=("ddim",),
        trial_values=parameters,
        pipeline_defaults={"padding_mask_crop": None, "controlnet_conditioning_scale": 1.0},
    )
    yield load_models([spec], device="cpu:0", row_limits={"tiny": LIMITS}, num_threads=1)
    torch.set_num_threads(before)


@pytest.fixture
def engine(loaded: LoadedModels) -> Iterator[Engine]:
    """The test calls its ticks, so that joins and cancels happen where a test says."""
    engine = Engine(loaded.models, loaded.row_limits, determinism=loaded.determinism, clock=lambda: 0.0)
    yield engine
    engine.stop()


def picture(number: int, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC))


def mask(number: int, side: int = SIDE) -> np.ndarray:
    pixels = np.zeros((side, side), np.uint8)
    pixels[side // 8 * (number % 4) :, side // 4 :] = 255
    return pixels


def asked(task: PipelineTask, number: int, **changes: Any) -> GenerationRequest:
    """A request of this task; its number decides every parameter."""
    inputs: dict[str, tuple[np.ndarray, ...]] = {}
    given: dict[str, Any] = {}
    ids = [f"file_{number:063x}{index}" for index in range(3)]
    if task in ("image-to-image", "inpainting"):
        inputs["image"], given["image"] = (picture(number),), (ids[0],)
    if task == "inpainting":
        inputs["mask_image"], given["mask_image"] = (mask(number),), ids[1]
    if task == "control":
        inputs["control_image"], given["control_image"] = (picture(number),), ids[2]
    plain = {
        "num_inference_steps": 4 + number % 5,
        "guidance_scale": (2.0, 1.0, 5.0)[number % 3],
        "seed": number,
        "scheduler": DDIM,
    }
    return GenerationRequest(
        "tiny", PROMPTS[number % 3], SIDE, SIDE, inputs=inputs, **{**plain, **given, **changes}
    )


def finish(engine: Engine) -> None:
    for _ in range(1000):
        if engine.is_idle:
            return
        engine.tick()
    raise AssertionError("it does not come to an end")


def drawn(engine: Engine, *requests: GenerationRequest) -> list[GeneratedImage]:
    """The images of requests that are submitted together."""
    handles = [engine.submit(request) for request in requests]
    finish(engine)
    return [handle.future.result(timeout=0) for handle in handles]


def test_all_tasks_share_one_set_of_weights_and_the_level_is_exact(loaded: LoadedModels) -> None:
    model = loaded.models["tiny"]
    assert model.tasks == TASKS
    assert loaded.determinism == "exact"
    assert not model.runs_alone
    for pipeline in (one.pipeline for one in model._by_task.values()):
        assert pipeline.unet is model.modules["unet"]
        assert pipeline.vae is model.modules["vae"]


def test_requests_of_different_tasks_and_strengths_share_a_step_batch(engine: Engine) -> None:
    requests = [
        asked("text-to-image", 1, num_inference_steps=4),
        asked("image-to-image", 4, num_inference_steps=8, strength=0.5),
        asked("inpainting", 7, num_inference_steps=5, strength=0.8),
    ]
    images = drawn(engine, *requests)
    assert [image.num_steps for image in images] == [4, 4, 4]
    assert [image.mean_step_batch for image in images] == [3.0, 3.0, 3.0]


def random_request(rng: random.Random, number: int) -> GenerationRequest:
    task = rng.choice(TASKS)
    changes: dict[str, Any] = {
        "num_inference_steps": rng.randint(2, 7),
        "guidance_scale": rng.choice([1.0, 2.0, 6.0]),
        "guidance_cutoff": rng.choice([1.0, 1.0, 0.5]),
        "scheduler": rng.choice(SCHEDULERS),
        "negative_prompt": rng.choice(["", "black"]),
    }
    if task in ("image-to-image", "inpainting"):
        changes["strength"] = rng.choice([None, 0.5, 0.75, 1.0])
    if task != "control":
        changes["step_cache"] = rng.choice([1, 1, 2])
    if task == "inpainting" and rng.random() < 0.3:
        changes["pipeline_parameters"] = {"padding_mask_crop": 8}
    if task == "control" and rng.random() < 0.5:
        changes["pipeline_parameters"] = {"controlnet_conditioning_scale": 0.5}
    return asked(task, number, **changes)


@pytest.mark.parametrize("seed", range(2))
def test_bytes_do_not_depend_on_requests_of_other_tasks(engine: Engine, seed: int) -> None:
    """Requests join at random ticks and some are canceled: the others have the bytes that they have alone."""
    rng = random.Random(seed)
    requests = [random_request(rng, number) for number in range(16)]
    joins = [rng.randint(0, 8) for _ in requests]
    cancels = {index: rng.randint(1, 9) for index in range(len(requests)) if rng.random() < 0.2}
    handles: dict[int, Handle] = {}
    for tick in range(1000):
        for index, request in enumerate(requests):
            if joins[index] == tick:
                handles[index] = engine.submit(request)
            if cancels.get(index) == tick and index in handles:
                handles[index].cancel()
        engine.tick()
        if len(handles) == len(requests) and engine.is_idle:
            break
    errors = {index: handle.future.exception(timeout=0) for index, handle in handles.items()}
    assert all(error is None or isinstance(error, Canceled) for error in errors.values())
    images = {index: handles[index].future.result() for index, error in errors.items() if error is None}
    assert sum(image.mean_step_batch for image in images.values()) / len(images) > 1.5
    for index, image in images.items():
        [alone] = drawn(engine, requests[index])
        assert image.pixels.tobytes() == alone.pixels.tobytes(), requests[index]
    assert len({image.pixels.tobytes() for image in images.values()}) == len(images)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [(SIDE, SIDE), (100, 80)])
def test_an_image_is_that_of_diffusers_own_pipeline(
    engine: Engine, controlnet: Path, task: PipelineTask, size: tuple[int, int]
) -> None:
    request = asked(task, 5, num_inference_steps=6, guidance_scale=3.0)
    images = {
        name: tuple(one if name == "mask_image" else picture(5, *size) for one in given)
        for name, given in request.inputs.items()
    }
    request = replace(request, inputs=images)
    given: dict[str, Any] = {}
    if task == "control":
        given["controlnet"] = ControlNetModel.from_pretrained(controlnet)
    theirs = CLASSES[task].from_pretrained(
        ROOT / "models/tiny", safety_checker=None, dtype=torch.float32, **given
    )
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {
        "image" if name == "control_image" else name: Image.fromarray(one) for name, (one,) in images.items()
    }
    if task == "image-to-image":  # it draws at the size of its image
        arguments["image"] = arguments["image"].resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    else:
        arguments |= {"width": SIDE, "height": SIDE}
    image = theirs(
        prompt=request.prompt,
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(5),
        **arguments,
    ).images[0]
    [ours] = drawn(engine, request)
    assert np.abs(np.asarray(image).astype(int) - ours.pixels.astype(int)).max() <= 2


def test_the_less_the_strength_the_nearer_the_image_is_to_the_one_it_began_with(engine: Engine) -> None:
    requests = [
        asked("image-to-image", 2, num_inference_steps=20, strength=strength) for strength in (0.1, 0.5, 1.0)
    ]
    distances = [
        np.abs(image.pixels.astype(int) - picture(2).astype(int)).mean() for image in drawn(engine, *requests)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.6 * distances[2]


def test_what_the_mask_keeps_is_kept(engine: Engine) -> None:
    request = asked("inpainting", 3, num_inference_steps=10, pipeline_parameters={"padding_mask_crop": 8})
    [image] = drawn(engine, request)
    [kept], [given] = request.inputs["mask_image"], request.inputs["image"]
    assert (image.pixels[kept == 0] == given[kept == 0]).mean() > 0.9
    assert (image.pixels[kept == 255] == given[kept == 255]).mean() < 0.5


def test_the_control_image_and_its_scale_show_in_the_image(engine: Engine) -> None:
    first = asked("control", 4, num_inference_steps=8)
    other = replace(first, inputs={"control_image": (picture(99),)})
    weaker = first.changed(pipeline_parameters={"controlnet_conditioning_scale": 0.0})
    images = [image.pixels.tobytes() for image in drawn(engine, first, other, weaker)]
    assert len(set(images)) == 3
    [plain] = drawn(engine, asked("text-to-image", 4, num_inference_steps=8))
    assert images[2] == plain.pixels.tobytes(), "at scale 0 the ControlNet has no effect"


def test_progress_and_the_number_of_steps_are_those_that_the_strength_leaves(engine: Engine) -> None:
    progress: list[tuple[int, int]] = []
    request = asked("image-to-image", 6, num_inference_steps=10, strength=0.31)
    handle = engine.submit(request, on_progress=lambda done, steps: progress.append((done, steps)))
    assert engine._inbox[0].num_steps == 3, "known before its call has started"
    finish(engine)
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert handle.future.result(timeout=0).num_steps == 3


@pytest.mark.parametrize("steps", [1, 3, 49])
def test_an_image_without_a_strength_is_drawn_in_a_step_at_least(engine: Engine, steps: int) -> None:
    request = asked("image-to-image", 6, num_inference_steps=steps, strength=None)
    handle = engine.submit(request)
    finish(engine)
    assert handle.future.result(timeout=0).num_steps >= 1


@pytest.mark.parametrize(
    ("task", "changes", "refusal"),
    [
        (
            "image-to-image",
            {"strength": 0.04, "num_inference_steps": 20},
            "strength: with 20 steps at least 0.05",
        ),
        (
            "image-to-image",
            {"strength": 0.5, "num_inference_steps": 1},
            "strength: with 1 step at least 1",
        ),
        ("text-to-image", {"strength": 0.5}, "strength: is for image-to-image and inpainting"),
        ("control", {"strength": 0.5}, "strength: is for image-to-image and inpainting"),
        ("control", {"step_cache": 2}, "step_cache: 'tiny' has no step cache for control"),
        (
            "image-to-image",
            {"pipeline_parameters": {"padding_mask_crop": 8}},
            "pipeline_parameters/padding_mask_crop: a StableDiffusionImg2ImgPipeline has no such",
        ),
        (
            "text-to-image",
            {"pipeline_parameters": {"controlnet_conditioning_scale": 0.5}},
            "pipeline_parameters/controlnet_conditioning_scale: a StableDiffusionPipeline has no such",
        ),
    ],
)
def test_what_a_task_cannot_do_is_refused_by_its_field(
    engine: Engine, task: PipelineTask, changes: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(RequestInvalid) as refused:
        engine.submit(asked(task, 0, **changes))
    assert str(refused.value).startswith(refusal)


def test_the_default_of_another_tasks_parameter_keeps_no_request_from_being_drawn(engine: Engine) -> None:
    """The web fills in the default of every declared parameter."""
    defaults: dict[str, Any] = {"controlnet_conditioning_scale": 1.0}
    filled, plain = asked("text-to-image", 0, pipeline_parameters=defaults), asked("text-to-image", 0)
    first, second = drawn(engine, filled, plain)
    assert first.pixels.tobytes() == second.pixels.tobytes()


def test_a_strict_edit_runs_alone_and_a_strict_image_to_image_need_not(loaded: LoadedModels) -> None:
    """The self-test does not try the sizes of images of an edit."""
    model = loaded.models["tiny"]
    models = Models(loaded.models, loaded.row_limits, determinism="exact")
    request = asked("image-to-image", 1, strict=True)
    assert not models.generation(request, submitted_at=0.0, num_ticks=0).key.is_alone
    editor = PipelineModel(model._pipeline, {"edit": model._by_task["image-to-image"].pipeline})
    editor.buckets = model.buckets
    models = Models({"tiny": editor}, loaded.row_limits, determinism="exact")
    assert models.generation(request, submitted_at=0.0, num_ticks=0).key.is_alone


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"tasks": ("edit",)}, "tasks: a StableDiffusionPipeline cannot offer 'edit': set tasks ="),
        ({"tasks": ("text-to-image", "control")}, "tasks: 'control' needs a ControlNet: set controlnet"),
        ({"controlnet": "here"}, "controlnet: only the task 'control' uses it: add 'control' to tasks"),
        ({"tasks": TASKS, "controlnet": "nowhere"}, "controlnet 'nowhere': there is no such folder"),
        (
            {"tasks": TASKS, "controlnet": str(ROOT / "models/tiny/unet")},
            "UNet2DConditionModel is not a ControlNet class",
        ),
        ({"tasks": TASKS, "controlnet": str(ROOT / "models/tiny")}, "there is no config.json"),
    ],
)
def test_tasks_that_the_model_cannot_offer_are_refused_at_load(entries: dict[str, Any], said: str) -> None:
    spec = ModelSpec("tiny", str(ROOT / "models/tiny"), **entries)
    with pytest.raises(LoadError) as refused:
        load_models([spec], device="cpu:0", row_limits={"tiny": LIMITS}, self_test_seconds=0)
    assert said in str(refused.value)


def test_a_controlnet_that_does_not_fit_is_refused_at_load_and_the_task_is_named(
    controlnet: Path, tmp_path: Path
) -> None:
    module = ControlNetModel.from_pretrained(controlnet)
    config = {**module.config, "cross_attention_dim": 24}
    ControlNetModel.from_config(config).save_pretrained(tmp_path)
    spec = ModelSpec("tiny", str(ROOT / "models/tiny"), tasks=TASKS, controlnet=str(tmp_path))
    with pytest.raises(LoadError, match=r"tasks: 'control' .*: it draws no image: its controlnet"):
        load_models([spec], device="cpu:0", row_limits={"tiny": LIMITS}, self_test_seconds=0)
