"""A step cache does not change a bit of full steps, and cached steps stay close to them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from engine.partial_forwards import fitting
from engine.partial_forwards.unet import UNetPartialForward
from engine.pipelines.pipeline_model import PipelineModel
from engine.request import GenerationRequest, SchedulerSpec
from tests.integration.engine.tiny_families import BUILDERS, build

BLOCKS = {
    "sd": {
        "block_out_channels": (16, 32),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "sdxl": {
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 1, 2),
    },
    "unlike": {"center_input_sample": True, "time_embedding_act_fn": "silu", "conv_out_kernel": 1},
}


def unet(**changes: Any) -> Any:
    torch.manual_seed(3)
    plain = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**plain, **changes}).eval()


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def rows(num_rows: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(num_rows, 4, height, width, generator=generator)
    return latents, torch.linspace(1, 999, num_rows), torch.randn(num_rows, 6, 32, generator=generator)


@pytest.mark.parametrize("size", [(16, 16), (9, 15)])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_partial_forward_of_full_rows_is_the_unets_own_forward(blocks: str, size: tuple[int, int]) -> None:
    model = unet(**BLOCKS[blocks])
    assert UNetPartialForward.supports(model)
    latents, timesteps, embeds = rows(8, *size)
    expected = model(latents, timesteps, encoder_hidden_states=embeds, return_dict=False)[0]
    output, features = UNetPartialForward(model).predict(latents, timesteps, embeds, None, 8, None)
    assert torch.equal(output, expected)
    assert len(features) == 8
    # With features of the same step, a cached row equals a full one.
    cached, none = UNetPartialForward(model).predict(latents, timesteps, embeds, None, 0, features)
    assert torch.equal(cached, expected)
    assert len(none) == 0


@pytest.mark.parametrize("blocks", BLOCKS)
def test_full_and_cached_rows_of_one_pass_have_the_bits_of_passes_of_their_own(blocks: str) -> None:
    model = unet(**BLOCKS[blocks])
    partial_forward = UNetPartialForward(model)
    latents, timesteps, embeds = rows(8, 16, 16)
    before = latents + 0.1
    _, kept = partial_forward.predict(before, timesteps, embeds, None, 8, None)
    full, _ = partial_forward.predict(latents, timesteps, embeds, None, 8, None)
    cached, _ = partial_forward.predict(latents, timesteps, embeds, None, 0, kept)
    assert not torch.equal(full, cached), "a shortcut that changes nothing proves nothing"
    # Three full rows: the inner blocks run a fourth one too, whose output is dropped.
    output, features = partial_forward.predict(latents, timesteps, embeds, None, 4, kept[3:])
    assert torch.equal(output[:3], full[:3])
    assert torch.equal(output[3:], cached[3:])
    assert len(features) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
        {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")},
        {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        {"class_embed_type": "timestep"},
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
    ],
)
def test_a_unet_of_other_blocks_is_not_supported(changes: dict[str, Any]) -> None:
    assert not UNetPartialForward.supports(unet(**changes))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in BUILDERS),
        ("stable_diffusion", {"time_cond_proj_dim": 16}),
        ("stable_diffusion_xl", {"time_cond_proj_dim": 16}),
        ("flux", {"guidance_embeds": False}),
        ("pixart", {"is_sigma": True}),
    ],
)
def test_a_models_full_step_with_a_cache_is_its_step_without(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """With the arguments that the pipeline passes to its denoiser, in two calls that share the pass."""
    model = PipelineModel(build(name, tmp_path, **changes))
    own = SchedulerSpec("default")
    calls = []
    for seed in (1, 2):
        request = GenerationRequest("m", "a red heart", 96, 64, 4, 1.0 + seed, seed=seed, scheduler=own)
        calls.append(model.begin(request))
        model.exchange.run_to_denoiser(calls[-1])
    parked = [call.parked for call in calls if call.parked is not None]
    given: list[dict[str, Any]] = []

    def note(arguments: dict[str, Any]) -> Any:
        given.append(arguments)
        return model.modules[parked[0].name](**arguments)

    parts = model.exchange.outputs(parked, 4, note)
    expected = model.modules[parked[0].name](**given[0])[0]
    named = fitting(model.partial_forward, given[0])
    output, features = model.partial_forward.predict(**named, num_full_rows=4, features=None)
    assert len(expected) == len(features) == 4
    assert torch.equal(parts[0][0], expected[: parked[0].num_rows])
    assert torch.equal(output, expected)
    again, _ = model.partial_forward.predict(**named, num_full_rows=0, features=features)
    # A UNet keeps the input of its last layer, a transformer a residual, and its sum is rounded.
    tolerance = 0.0 if name in ("stable_diffusion", "stable_diffusion_xl") else 1e-5
    assert torch.allclose(again, expected, rtol=0, atol=tolerance)
    for call in calls:
        call.end()
