"""A partial forward gives full rows the bits of the transformer's forward, beside any cached rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor

from engine.partial_forwards.flux import FluxPartialForward
from engine.partial_forwards.pixart import PixArtPartialForward
from engine.partial_forwards.sana import SanaPartialForward
from engine.partial_forwards.stable_diffusion_3 import StableDiffusion3PartialForward

NUM_ROWS, NUM_TEXT_TOKENS = 8, 6
PIXART = {
    "sample_size": 32,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "in_channels": 4,
    "out_channels": 8,
    "cross_attention_dim": 24,
}
SD3 = {
    "sample_size": 32,
    "num_layers": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 16,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "pos_embed_max_size": 32,
}
FLUX = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
SANA = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "cross_attention_head_dim": 8,
    "num_cross_attention_heads": 4,
    "cross_attention_dim": 32,
    "caption_channels": 16,
    "sample_size": 16,
}


@dataclass(frozen=True)
class Kind:
    partial_forward: Any
    transformer: Any
    config: dict[str, Any]


KINDS = {
    "sd3": Kind(StableDiffusion3PartialForward, SD3Transformer2DModel, SD3),
    # Like 3.5 medium: a second attention in the first blocks, normalized queries and keys.
    "sd3.5": Kind(
        StableDiffusion3PartialForward,
        SD3Transformer2DModel,
        {**SD3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
    ),
    "flux-dev": Kind(FluxPartialForward, FluxTransformer2DModel, FLUX),
    "flux-schnell": Kind(FluxPartialForward, FluxTransformer2DModel, {**FLUX, "guidance_embeds": False}),
    "flux-single": Kind(FluxPartialForward, FluxTransformer2DModel, {**FLUX, "num_layers": 0}),
    "pixart-alpha": Kind(
        PixArtPartialForward,
        PixArtTransformer2DModel,
        {**PIXART, "use_additional_conditions": True, "caption_channels": 16},
    ),
    "pixart-sigma": Kind(PixArtPartialForward, PixArtTransformer2DModel, {**PIXART, "caption_channels": 16}),
    "pixart-unprojected": Kind(
        PixArtPartialForward, PixArtTransformer2DModel, {**PIXART, "cross_attention_dim": 16}
    ),
    "sana": Kind(SanaPartialForward, SanaTransformer2DModel, {**SANA, "qk_norm": "rms_norm_across_heads"}),
    "sana-patches": Kind(SanaPartialForward, SanaTransformer2DModel, {**SANA, "patch_size": 2}),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def made(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(3)
    kind = KINDS[name]
    return kind.transformer(**{**kind.config, **changes}).to(dtype).eval()


def inputs(
    name: str, size: tuple[int, int], dtype: torch.dtype = torch.float32, shift: float = 0.0
) -> dict[str, Any]:
    """The arguments that diffusers' pipeline passes to its transformer, for rows at different steps."""
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(NUM_ROWS, *shape, generator=generator).to(dtype)

    height, width = size
    given: dict[str, Any] = {
        "hidden_states": noise(4, height, width) + shift,
        "encoder_hidden_states": noise(NUM_TEXT_TOKENS, 16),
        "timestep": torch.linspace(1, 999, NUM_ROWS),
    }
    kind = KINDS[name]
    if kind.partial_forward is StableDiffusion3PartialForward:
        given["pooled_projections"] = noise(16)
    elif kind.partial_forward is FluxPartialForward:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        positions = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
        given |= {
            "hidden_states": noise(height * width, 16) + shift,
            "timestep": given["timestep"] / 1000,
            "pooled_projections": noise(16),
            "guidance": torch.linspace(1, 7, NUM_ROWS) if kind.config["guidance_embeds"] else None,
            "img_ids": positions.to(dtype),
            "txt_ids": torch.zeros(NUM_TEXT_TOKENS, 3, dtype=dtype),
        }
    else:
        lengths = torch.arange(NUM_ROWS) % NUM_TEXT_TOKENS + 1
        given["encoder_attention_mask"] = (
            torch.arange(NUM_TEXT_TOKENS) < lengths[:, None]
        ).long()  # each row another text
    if kind.partial_forward is PixArtPartialForward:
        told = kind.config.get("use_additional_conditions", False)
        given["added_cond_kwargs"] = {
            "resolution": torch.full((NUM_ROWS, 2), 256.0, dtype=dtype) if told else None,
            "aspect_ratio": torch.full((NUM_ROWS, 1), 1.0, dtype=dtype) if told else None,
        }
    return given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (6, 10)], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_a_partial_forward_of_full_rows_is_the_transformers_own_forward(
    name: str, size: tuple[int, int], dtype: torch.dtype
) -> None:
    model, given = made(name, dtype), inputs(name, size, dtype)
    partial_forward = KINDS[name].partial_forward
    assert partial_forward.supports(model)
    expected = model(**given, return_dict=False)[0]
    output, features = partial_forward(model).predict(**given, num_full_rows=NUM_ROWS, features=None)
    assert torch.equal(output, expected)
    assert output.dtype == features.dtype == dtype
    assert len(features) == NUM_ROWS
    # With features of the same step, a cached row equals a full one up to the rounding of a sum.
    cached, none = partial_forward(model).predict(**given, num_full_rows=0, features=features)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    assert torch.allclose(cached, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert len(none) == 0


@pytest.mark.parametrize("name", KINDS)
def test_full_and_cached_rows_of_one_pass_have_the_bits_of_passes_of_their_own(name: str) -> None:
    model = made(name)
    partial_forward = KINDS[name].partial_forward(model)
    before, now = inputs(name, (8, 8), shift=0.3), inputs(name, (8, 8))
    _, kept = partial_forward.predict(**before, num_full_rows=NUM_ROWS, features=None)
    full, added = partial_forward.predict(**now, num_full_rows=NUM_ROWS, features=None)
    cached, _ = partial_forward.predict(**now, num_full_rows=0, features=kept)
    assert (full != cached).flatten(1).any(1).all(), "a shortcut that changes nothing proves nothing"
    # Three full rows: the inner blocks run a fourth one too, whose output is dropped.
    output, features = partial_forward.predict(**now, num_full_rows=4, features=kept[3:])
    assert torch.equal(output[:3], full[:3])
    assert torch.equal(output[3:], cached[3:])
    assert torch.equal(features, added[:3])


@pytest.mark.parametrize("name", ["pixart-sigma", "sana"])
def test_padding_of_a_text_is_masked_in_full_rows_and_in_cached_ones(name: str) -> None:
    model, given = made(name), inputs(name, (8, 8))
    partial_forward = KINDS[name].partial_forward(model)
    other = dict(given)
    is_padding = (given["encoder_attention_mask"] == 0)[..., None]
    other["encoder_hidden_states"] = torch.where(is_padding, 9.0, given["encoder_hidden_states"])
    unmasked = {**other, "encoder_attention_mask": torch.ones_like(given["encoder_attention_mask"])}
    features = None
    for num_full_rows in (NUM_ROWS, 0):
        one, new = partial_forward.predict(**given, num_full_rows=num_full_rows, features=features)
        same, _ = partial_forward.predict(**other, num_full_rows=num_full_rows, features=features)
        read, _ = partial_forward.predict(**unmasked, num_full_rows=num_full_rows, features=features)
        assert torch.allclose(one, same, atol=1e-5)
        assert not torch.allclose(one, read, atol=1e-5), "padding that is read shows"
        features = new


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_blocks_run_in_a_partial_forward_and_are_not_compiled_again() -> None:
    """Traced, guarded and counted by dynamo as usual, but run by a backend that compiles nothing."""
    name = "flux-dev"
    model, given = made(name, num_layers=1, num_single_layers=2), inputs(name, (4, 4))
    plain = model(**given, return_dict=False)[0]
    model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="eager")
    expected = model(**given, return_dict=False)[0]
    num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert num_graphs >= 2, "a double block and a single one"
    assert torch.allclose(expected, plain, atol=1e-4)
    output, features = FluxPartialForward(model).predict(**given, num_full_rows=NUM_ROWS, features=None)
    cached, _ = FluxPartialForward(model).predict(**given, num_full_rows=0, features=features)
    assert torch.equal(output, expected)
    assert torch.allclose(cached, expected, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_graphs


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sd3", {"num_layers": 1}),
        ("flux-dev", {"num_layers": 1, "num_single_layers": 0}),
        ("pixart-sigma", {"num_layers": 1}),
        ("sana", {"num_layers": 1}),
        ("sana", {"guidance_embeds": True}),
    ],
)
def test_a_transformer_with_nothing_to_skip_is_not_supported(name: str, changes: dict[str, Any]) -> None:
    assert not KINDS[name].partial_forward.supports(made(name, **changes))


def test_a_transformer_of_another_class_is_not_supported() -> None:
    for name, kind in KINDS.items():
        model = made(name)
        for other in KINDS.values():
            assert other.partial_forward.supports(model) == (other.partial_forward is kind.partial_forward)
