"""The exchange with diffusers' own pipelines: what a call draws, and that it leaves nothing behind."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPAGPipeline, StableDiffusionPipeline

from engine.exchange import Exchange
from engine.loading.optimization import offload_models
from engine.pipelines.components import is_denoiser
from engine.pipelines.pipeline_call import PipelineCall
from tests.integration.engine.reference import MODELS
from tests.integration.engine.tiny_families import build


def asked(number: int) -> dict[str, Any]:
    """The arguments of a small request; each number gives another one."""
    return {
        "prompt": f"a red heart {number}",
        "negative_prompt": "grey" if number % 2 else None,
        "num_inference_steps": (4, 7, 5, 6)[number % 4],
        "guidance_scale": (1.0, 7.5, 3.0, 2.0)[number % 4],
        "width": 64,
        "height": 64,
        "generator": torch.Generator("cpu").manual_seed(number),
        "output_type": "np",
    }


@pytest.fixture(params=MODELS)
def pipeline(request: pytest.FixtureRequest, pipelines: dict[str, StableDiffusionPipeline]) -> Any:
    return pipelines[request.param]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def advance(exchange: Exchange, calls: list[PipelineCall]) -> None:
    """Make one forward pass for the largest group of calls that can share one."""
    groups: dict[Any, list[PipelineCall]] = {}
    for call in calls:
        if call.parked is not None:
            groups.setdefault(call.parked.signature, []).append(call)
    members = max(groups.values(), key=len)
    num_rows = sum(call.parked.num_rows for call in members if call.parked is not None)
    is_padded = members[0].parked is not None and is_denoiser(members[0].parked.name)
    assert exchange.run(members, -(-num_rows // 4) * 4 if is_padded else None) == []


def drawn(call: PipelineCall) -> np.ndarray:
    assert call.error is None
    image: np.ndarray = call.result.images[0]
    return image


def to_first_step(exchange: Exchange, number: int) -> PipelineCall:
    call = exchange.begin(**asked(number))
    while call.parked is not None and not is_denoiser(call.parked.name):
        exchange.run([call])
    return call


def test_requests_that_join_at_any_step_draw_what_the_untouched_pipeline_draws(pipeline: Any) -> None:
    alone = [pipeline(**asked(number)).images[0] for number in range(4)]
    exchange = Exchange(pipeline)
    calls: list[PipelineCall] = []
    shared = 0
    for number in range(4):
        calls.append(to_first_step(exchange, number))
        advance(exchange, calls)
    while any(call.parked is not None for call in calls):
        shared += sum(call.parked is not None for call in calls) > 1
        advance(exchange, calls)
    assert shared
    for call, image in zip(calls, alone, strict=True):
        assert call.num_steps_done == call.num_steps or call.num_steps is None
        assert np.abs(drawn(call) - image).max() <= 0.01 / 255


def test_a_call_says_how_many_of_its_steps_are_done(pipeline: Any) -> None:
    exchange = Exchange(pipeline)
    call = exchange.begin(**asked(1))
    assert call.parked is not None
    assert (call.parked.name, call.num_steps, call.num_steps_done) == ("text_encoder", None, 0)
    call = to_first_step(exchange, 1)
    assert (call.num_steps, call.num_steps_done) == (7, 0)
    exchange.run([call])
    assert (call.num_steps, call.num_steps_done) == (7, 1)
    call.end()


def test_a_call_that_is_ended_gives_its_memory_back_at_once(pipeline: Any) -> None:
    exchange = Exchange(pipeline)
    calls = [to_first_step(exchange, number) for number in (1, 1)]
    exchange.run(calls, 4)
    held = [weakref.ref(one) for one in _tensors(calls[0])]
    assert held
    gc.disable()
    try:
        calls[0].end()
        assert [ref() for ref in held if ref() is not None] == []
    finally:
        gc.enable()
    calls[1].end()


@pytest.mark.parametrize("is_failed", [True, False])
def test_neither_its_scheduler_nor_its_error_keeps_the_memory_of_a_call(
    pipelines: dict[str, StableDiffusionPipeline], is_failed: bool
) -> None:
    exchange = Exchange(pipelines[MODELS[0]])
    scheduler = DPMSolverMultistepScheduler.from_config(pipelines[MODELS[0]].scheduler.config)
    held: list[weakref.ref[torch.Tensor]] = []

    def fail(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        held.append(weakref.ref(tensors["latents"]))
        if is_failed and step == 2:
            raise RuntimeError("in the pipeline's own code")
        return {}

    call = exchange.begin(scheduler, **asked(1), callback_on_step_end=fail)
    while call.parked is not None and len(held) < 3:
        exchange.run([call])
    held += [weakref.ref(one) for one in vars(scheduler).get("model_outputs", []) if one is not None]
    gc.disable()
    try:
        call.end()
        assert (call.error is not None) == is_failed
        assert held
        assert [ref() for ref in held if ref() is not None] == []
    finally:
        gc.enable()


def test_a_call_that_is_ended_early_leaves_the_shared_attention_as_it_was(tmp_path: Path) -> None:
    pipeline = build("stable_diffusion", tmp_path, pipeline_class=StableDiffusionPAGPipeline)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    before = dict(pipeline.unet.attn_processors)
    plain = {**asked(1), "pag_scale": 0.0}
    alone = pipeline(**plain).images[0]
    exchange = Exchange(pipeline)
    call = exchange.begin(**{**asked(1), "pag_scale": 3.0})
    while call.parked is not None and call.num_steps_done < 1:
        exchange.run([call])
    assert dict(pipeline.unet.attn_processors) != before
    call.end()
    assert dict(pipeline.unet.attn_processors) == before
    again = exchange.begin(**{**asked(1), "pag_scale": 0.0})
    while again.parked is not None:
        exchange.run([again])
    assert np.array_equal(drawn(again), alone)


def _tensors(call: PipelineCall) -> list[torch.Tensor]:
    assert call.parked is not None
    return [leaf for leaf in call.parked.leaves if isinstance(leaf, torch.Tensor)]


def test_a_pass_that_fails_leaves_every_call_where_it_was(pipeline: Any) -> None:
    alone = [pipeline(**asked(number)).images[0] for number in (1, 3)]
    exchange = Exchange(pipeline)
    calls = [to_first_step(exchange, number) for number in (1, 3)]
    hook = pipeline.unet.register_forward_pre_hook(_fail)
    with pytest.raises(torch.OutOfMemoryError):
        exchange.run(calls)
    hook.remove()
    for call, image in zip(calls, alone, strict=True):
        while call.parked is not None:
            exchange.run([call])
        assert np.abs(drawn(call) - image).max() <= 0.01 / 255


def _fail(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_call_whose_numbers_are_not_finite_is_named_and_harms_no_other(pipeline: Any) -> None:
    alone = pipeline(**asked(1)).images[0]
    exchange = Exchange(pipeline)
    sound, ill = (to_first_step(exchange, 1) for _ in range(2))
    assert ill.parked is not None
    next(leaf for leaf in ill.parked.leaves if isinstance(leaf, torch.Tensor)).fill_(torch.nan)
    assert exchange.run([sound, ill]) == [ill]
    ill.end()
    while sound.parked is not None:
        exchange.run([sound])
    assert np.abs(drawn(sound) - alone).max() <= 0.01 / 255


def test_what_a_call_draws_from_torch_itself_follows_its_seed_alone(pipeline: Any) -> None:
    def with_own_noise(number: int) -> dict[str, Any]:
        return asked(number) | {"callback_on_step_end": _add_noise}

    alone = []
    for number in (1, 3):
        torch.manual_seed(number)
        alone.append(pipeline(**with_own_noise(number)).images[0])
    exchange = Exchange(pipeline)
    before = torch.get_rng_state()
    calls = [exchange.begin(**with_own_noise(number)) for number in (1, 3)]
    while any(call.parked is not None for call in calls):
        advance(exchange, calls)
    assert torch.equal(torch.get_rng_state(), before)
    for call, image in zip(calls, alone, strict=True):
        assert np.abs(drawn(call) - image).max() <= 0.01 / 255


def _add_noise(_: Any, __: int, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"latents": tensors["latents"] + 0.1 * torch.randn(tensors["latents"].shape)}


def test_what_the_pipeline_refuses_is_the_error_of_that_call(pipeline: Any) -> None:
    call = Exchange(pipeline).begin(**{**asked(1), "width": 63})
    assert call.parked is None
    assert isinstance(call.error, ValueError)
    assert "divisible" in str(call.error)


def test_neither_the_pipeline_nor_its_modules_are_changed(pipeline: Any) -> None:
    before = {name: id(value) for name, value in vars(pipeline).items()}
    unet = {name: id(value) for name, value in vars(pipeline.unet).items()}
    scheduler = dict(vars(pipeline.scheduler))
    exchange = Exchange(pipeline)
    call = to_first_step(exchange, 1)
    exchange.run([call])
    call.end()
    assert {name: id(value) for name, value in vars(pipeline).items()} == before
    assert {name: id(value) for name, value in vars(pipeline.unet).items()} == unet
    assert all(vars(pipeline.scheduler)[name] is value for name, value in scheduler.items())


def test_a_pipeline_takes_a_stand_in_for_the_module_itself(pipeline: Any) -> None:
    call = Exchange(pipeline).begin(**asked(1))
    stand_in = vars(call._pipeline)["unet"]
    assert isinstance(stand_in, type(pipeline.unet))
    assert stand_in.config is pipeline.unet.config
    assert stand_in.dtype == pipeline.unet.dtype
    assert call._pipeline.device == pipeline.device
    call.end()


def test_a_call_cannot_move_a_module_that_others_are_parked_at(pipeline: Any) -> None:
    """SDXL's calls with an image convert the VAE to fp32, and back to the denoiser's dtype."""
    call = Exchange(pipeline).begin(**asked(1))
    before = pipeline.vae.dtype
    stand_in = vars(call._pipeline)["vae"]
    assert stand_in.to(dtype=torch.float16) is stand_in
    assert pipeline.vae.dtype == stand_in.dtype == before
    call.end()


def _compile_in_place(pipeline: Any) -> None:
    pipeline.unet.compile(backend="eager")


def _compile_blocks(pipeline: Any) -> None:
    pipeline.unet.compile_repeated_blocks(backend="eager")


def _wrap_in_compiled(pipeline: Any) -> None:
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")


def _offload(pipeline: Any) -> None:
    offload_models(pipeline, torch.device("cpu"))


@pytest.mark.parametrize("change", [_compile_in_place, _compile_blocks, _wrap_in_compiled, _offload])
def test_modules_with_layers_around_their_forward_park_and_draw_the_same(
    pipelines: dict[str, StableDiffusionPipeline], change: Callable[[Any], None]
) -> None:
    plain = pipelines[MODELS[0]]
    alone = [plain(**asked(number)).images[0] for number in range(2)]
    changed = copy.deepcopy(plain)
    change(changed)
    exchange = Exchange(changed)
    calls = [to_first_step(exchange, number) for number in range(2)]
    num_shared = 0
    while any(call.parked is not None for call in calls):
        num_shared += sum(call.parked is not None for call in calls) == 2
        advance(exchange, calls)
    assert num_shared
    for call, image in zip(calls, alone, strict=True):
        assert np.abs(drawn(call) - image).max() <= 0.01 / 255


def test_a_call_begins_without_a_walk_over_every_module(pipeline: Any) -> None:
    """diffusers looks for hooks in all modules of a pipeline whenever it reads where the pipeline runs."""
    exchange, walks = Exchange(pipeline), 0
    exchange.begin(**asked(1)).end()
    device, modules = pipeline._execution_device, pipeline.unet.modules

    def walked() -> Any:
        nonlocal walks
        walks += 1
        return modules()

    pipeline.unet.modules = walked
    try:
        call = to_first_step(exchange, 1)
    finally:
        del pipeline.unet.modules
    own = call._pipeline
    assert walks == 0
    assert own._execution_device == device
    assert (type(own).__name__, isinstance(own, type(pipeline))) == (type(pipeline).__name__, True)
    call.end()
