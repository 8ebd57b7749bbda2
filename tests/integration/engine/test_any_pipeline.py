"""The engine draws with pipelines of any class, in mixed batches as they draw alone."""

import inspect
import time
from collections.abc import Hashable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPAGPipeline
from diffusers.callbacks import SD3CFGCutoffCallback, SDCFGCutoffCallback, SDXLCFGCutoffCallback

from engine.engine import Engine
from engine.errors import Canceled, DeadlineExceeded, DeviceLost, LoadError, OutOfMemory, RequestInvalid
from engine.generation import Handle
from engine.loading.load import ModelSpec, load_engine
from engine.pipelines.parked_call import ParkedCall
from engine.pipelines.pipeline_model import PipelineModel
from engine.request import GenerationRequest, SchedulerSpec
from engine.self_test.self_test import Offer, find_determinism
from engine.self_test.time_budget import TimeBudget
from tests.integration.engine.tiny_families import build

KINDS = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "pixart", "sana")
SIDE = 64
LIMITS = {SIDE * SIDE: 8}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """diffusers' own pipelines by kind; PAG is Stable Diffusion with another class."""
    built = {kind: build(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}
    built["pag"] = build(
        "stable_diffusion", tmp_path_factory.mktemp("pag"), pipeline_class=StableDiffusionPAGPipeline
    )
    return built


@pytest.fixture(scope="module")
def folders(pipelines: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for kind, pipeline in pipelines.items():
        folders[kind] = tmp_path_factory.mktemp("saved") / kind
        pipeline.save_pretrained(folders[kind])
    return folders


def load(folders: dict[str, Path], *kinds: str, **changes: Any) -> Engine:
    """An engine of these kinds, not started."""
    specs = [ModelSpec(kind, str(folders[kind]), **changes) for kind in kinds]
    return load_engine(specs, device="cpu:0", row_limits=dict.fromkeys(kinds, LIMITS), num_threads=1)


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    engine = load(folders, *KINDS)
    yield engine
    engine.stop()


def asked(kind: str, number: int, **changes: Any) -> GenerationRequest:
    plain = {
        "num_inference_steps": (4, 7, 5, 6)[number % 4],
        "guidance_scale": (1.0, 7.5, 3.0, 2.0)[number % 4],
        "seed": number,
        "scheduler": SchedulerSpec("default"),
    }
    return GenerationRequest(kind, f"a red heart {number}", SIDE, SIDE, **{**plain, **changes})


def theirs(pipeline: Any, request: GenerationRequest, **changes: Any) -> np.ndarray:
    """The image of diffusers' own pipeline for the request, uint8 `(H, W, 3)`."""
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    has_bins = "use_resolution_binning" in inspect.signature(pipeline.__call__).parameters
    image = pipeline(
        prompt=request.prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="pil",
        **({"use_resolution_binning": False} if has_bins else {}),
        **changes,
    ).images[0]
    return np.asarray(image)


def finish(engine: Engine) -> None:
    deadline = time.monotonic() + 120
    while not engine.is_idle:
        engine.tick()
        assert time.monotonic() < deadline


def pixels(handle: Handle) -> np.ndarray:
    return handle.future.result(timeout=0).pixels


@pytest.mark.parametrize("kind", KINDS)
def test_images_drawn_in_mixed_batches_equal_those_of_the_untouched_pipeline(
    engine: Engine, pipelines: dict[str, Any], kind: str
) -> None:
    requests = [asked(kind, number) for number in range(4)]
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        engine.tick()
    finish(engine)
    for handle, request in zip(handles, requests, strict=True):
        difference = np.abs(pixels(handle).astype(int) - theirs(pipelines[kind], request).astype(int))
        assert difference.max() <= 1
        assert difference.mean() <= 0.2
    assert max(handle.future.result().mean_step_batch for handle in handles) > 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_other_batch_members(engine: Engine, kind: str) -> None:
    alone = engine.submit(asked(kind, 1))
    finish(engine)
    handles = [engine.submit(asked(kind, number)) for number in (0, 1, 2, 1)]
    finish(engine)
    assert engine.determinism == "exact"
    assert pixels(handles[1]).tobytes() == pixels(handles[3]).tobytes() == pixels(alone).tobytes()


def test_kinds_of_pipelines_take_turns_on_one_device(engine: Engine) -> None:
    handles = [engine.submit(asked(kind, number)) for kind in KINDS for number in range(2)]
    finish(engine)
    assert all(pixels(handle).shape == (SIDE, SIDE, 3) for handle in handles)


def test_a_step_cache_that_a_pipeline_cannot_have_is_refused_at_load(tmp_path: Path) -> None:
    one_level = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    flat = build("stable_diffusion", tmp_path, block_out_channels=(16,), **one_level)
    flat.save_pretrained(tmp_path / "flat")
    with pytest.raises(LoadError, match=r"'flat'.*step_cache"):
        load({"flat": tmp_path / "flat"}, "flat", step_cache=True)
    engine = load({"flat": tmp_path / "flat"}, "flat")
    with pytest.raises(RequestInvalid, match="step_cache"):
        engine.submit(asked("flat", 1, step_cache=2))


class Unshared(PipelineModel):
    """A model whose calls never have a signature in common."""

    def signature_number(self, parked: ParkedCall, apart: Hashable = ()) -> int:  # noqa: ARG002
        return id(parked)


@pytest.mark.parametrize(
    ("model_class", "determinism"), [(PipelineModel, "exact"), (Unshared, "within 1/255")]
)
def test_requests_that_share_no_pass_lower_the_level_to_within_1_255(
    pipelines: dict[str, Any], model_class: type[PipelineModel], determinism: str
) -> None:
    model = model_class(pipelines["stable_diffusion"])
    found = find_determinism(model, LIMITS, Offer(), TimeBudget())
    assert (found.determinism, model.runs_alone) == (determinism, False)


def test_a_model_whose_images_depend_on_batch_members_draws_one_at_a_time(
    folders: dict[str, Path], pipelines: dict[str, Any]
) -> None:
    engine = load(folders, "pag")
    requests = [asked("pag", number) for number in (1, 2, 3)]
    handles = [engine.submit(request) for request in requests]
    finish(engine)
    engine.stop()
    for handle, request in zip(handles, requests, strict=True):
        image = handle.future.result(timeout=0)
        assert np.abs(image.pixels.astype(int) - theirs(pipelines["pag"], request).astype(int)).max() <= 1
        assert image.mean_step_batch == 1
        assert [(one.code, one.field) for one in image.warnings] == [("not_batched", "model")]


def test_a_request_that_is_canceled_or_late_leaves_at_a_step_and_affects_no_other(
    engine: Engine, pipelines: dict[str, Any]
) -> None:
    canceled = engine.submit(asked("flux", 1, num_inference_steps=50))
    late = engine.submit(asked("flux", 2, num_inference_steps=50, seconds_left=3.0))
    kept = engine.submit(asked("flux", 3))
    # A slow machine encodes texts for more ticks before it steps.
    for _ in range(100):
        engine.tick()
        if canceled.progress > 0:
            break
    assert canceled.progress > 0
    canceled.cancel()
    finish(engine)
    assert isinstance(canceled.future.exception(timeout=0), Canceled)
    assert late.future.exception(timeout=0) is None or isinstance(
        late.future.exception(timeout=0), DeadlineExceeded
    )
    difference = np.abs(pixels(kept).astype(int) - theirs(pipelines["flux"], asked("flux", 3)).astype(int))
    assert difference.max() <= 1


def test_progress_counts_steps_whatever_the_pipeline_calls_between_them(engine: Engine) -> None:
    progress: list[tuple[int, int]] = []
    engine.submit(
        asked("stable_diffusion_3", 1), on_progress=lambda done, steps: progress.append((done, steps))
    )
    finish(engine)
    assert progress == [(done, 7) for done in range(1, 8)]


def test_what_the_pipeline_has_no_parameter_for_is_refused_by_name(engine: Engine) -> None:
    with pytest.raises(RequestInvalid, match="guidance_cutoff"):
        engine.submit(asked("flux", 1, guidance_cutoff=0.5))  # which has no second row


@pytest.mark.parametrize("kind", KINDS)
def test_step_caches_of_mixed_requests_leave_every_image_its_bytes(engine: Engine, kind: str) -> None:
    requests = [
        asked(kind, number, num_inference_steps=12 - number, step_cache=(3, 1, 2, 8)[number])
        for number in range(4)
    ]
    alone = []
    for request in requests:
        handle = engine.submit(request)
        finish(engine)
        alone.append(pixels(handle).tobytes())
    plain = engine.submit(replace(requests[0], step_cache=1))
    finish(engine)
    assert pixels(plain).tobytes() != alone[0], "a shortcut that changes nothing proves nothing"
    handles = []
    for request in requests:
        handles.append(engine.submit(request))
        engine.tick()
    finish(engine)
    assert [pixels(handle).tobytes() for handle in handles] == alone
    assert engine.step_cache_bytes == 0


def test_two_passes_of_a_step_have_features_of_their_own(engine: Engine) -> None:
    """FLUX.1 with true guidance and a negative prompt calls its transformer twice a step."""
    request = asked("flux", 1, num_inference_steps=12, negative_prompt="grey")
    guided = request.changed(pipeline_parameters={"true_cfg_scale": 4.0})
    cached = replace(guided, step_cache=2)
    handles = [engine.submit(one) for one in (guided, cached)]
    finish(engine)
    whole, near = (pixels(handle).astype(int) for handle in handles)
    negative = engine.submit(replace(guided, prompt="grey", negative_prompt="grey"))
    finish(engine)
    far = np.abs(whole - pixels(negative).astype(int)).mean()
    assert 0 < np.abs(whole - near).mean() < far / 2


@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access", "CUDA out of memory"])
def test_what_fails_behind_a_pass_is_of_the_device_where_it_says_so(
    folders: dict[str, Path], message: str
) -> None:
    engine = load(folders, "stable_diffusion")
    handles = [engine.submit(asked("stable_diffusion", number)) for number in (1, 3)]
    engine.tick()
    call: Any = handles[0]._generation._call
    kind = torch.OutOfMemoryError if "out of memory" in message else RuntimeError

    def fail(*_: Any, **__: Any) -> None:
        raise kind(message)

    vars(call._pipeline)["scheduler"].step = fail
    if kind is RuntimeError:
        with pytest.raises(DeviceLost):
            finish(engine)
        return
    finish(engine)
    assert isinstance(handles[0].future.exception(timeout=0), OutOfMemory)
    assert pixels(handles[1]).shape == (SIDE, SIDE, 3)


def test_a_step_cache_and_a_guidance_that_is_cut_off_go_together(engine: Engine) -> None:
    request = asked("stable_diffusion_xl", 1, num_inference_steps=12, step_cache=3, guidance_cutoff=0.5)
    image = engine.submit(request)
    finish(engine)
    assert np.ptp(pixels(image)) > 0


def test_parameters_of_the_pipeline_alone_reach_its_call(engine: Engine, pipelines: dict[str, Any]) -> None:
    plain = asked("stable_diffusion_xl", 1)
    own = plain.changed(pipeline_parameters={"guidance_rescale": 0.7, "clip_skip": 1})
    handles = [engine.submit(one) for one in (plain, own)]
    finish(engine)
    expected = theirs(pipelines["stable_diffusion_xl"], own, guidance_rescale=0.7, clip_skip=1)
    assert np.abs(pixels(handles[1]).astype(int) - expected.astype(int)).max() <= 1
    assert not np.array_equal(pixels(handles[0]), pixels(handles[1]))


def test_a_parameter_that_the_pipeline_has_not_is_refused_by_name(
    engine: Engine, folders: dict[str, Path]
) -> None:
    with pytest.raises(RequestInvalid, match="pipeline_parameters/true_cfg_scale"):
        engine.submit(asked("sana", 1, pipeline_parameters={"true_cfg_scale": 2.0}))
    with pytest.raises(LoadError, match=r"parameters\.true_cfg_scale"):
        load(folders, "sana", trial_values={"true_cfg_scale": None})


@pytest.mark.parametrize(
    ("kind", "callback"),
    [
        ("stable_diffusion", SDCFGCutoffCallback),
        ("stable_diffusion_xl", SDXLCFGCutoffCallback),
        ("stable_diffusion_3", SD3CFGCutoffCallback),
    ],
)
def test_guidance_that_is_cut_off_costs_one_row_and_draws_what_diffusers_callback_draws(
    engine: Engine, pipelines: dict[str, Any], kind: str, callback: Any
) -> None:
    request = asked(kind, 1, num_inference_steps=6, guidance_scale=5.0, guidance_cutoff=0.5)
    handle = engine.submit(request)
    rows = []
    while not handle.future.done():
        rows.append(handle._generation.num_rows)
        engine.tick()
    assert rows[:6] == [2, 2, 2, 1, 1, 1]
    image = pipelines[kind](
        prompt=request.prompt,
        width=SIDE,
        height=SIDE,
        num_inference_steps=6,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(1),
        output_type="pil",
        callback_on_step_end=callback(cutoff_step_ratio=None, cutoff_step_index=2),
    ).images[0]
    assert np.abs(pixels(handle).astype(int) - np.asarray(image).astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["pixart", "sana"])
def test_guidance_is_cut_off_where_the_pipeline_knows_no_callback_for_it(
    engine: Engine, pipelines: dict[str, Any], kind: str
) -> None:
    request = asked(kind, 1, num_inference_steps=6, guidance_scale=5.0, guidance_cutoff=0.5)
    handle = engine.submit(request)
    rows = []
    while not handle.future.done():
        rows.append(handle._generation.num_rows)
        engine.tick()
    assert rows[:6] == [2, 2, 2, 1, 1, 1]
    calls: list[None] = []

    def unguided(_: Any, __: Any, output: Any) -> Any:
        """Half of the steps are unchanged; after that both rows are the one with the prompt."""
        calls.append(None)
        return output if len(calls) <= 3 else (torch.cat([output[0][1:], output[0][1:]]), *output[1:])

    hook = pipelines[kind].transformer.register_forward_hook(unguided)
    try:
        image = theirs(pipelines[kind], replace(request, guidance_cutoff=1.0))
    finally:
        hook.remove()
    assert np.abs(pixels(handle).astype(int) - image.astype(int)).max() <= 1
    whole = theirs(pipelines[kind], replace(request, guidance_cutoff=1.0))
    assert not np.array_equal(whole, image)


def test_a_pipeline_that_draws_no_number_does_not_start(tmp_path: Path) -> None:
    broken = build("stable_diffusion", tmp_path)
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(LoadError, match=r"'broken'.*not finite"):
        load({"broken": tmp_path / "broken"}, "broken")
