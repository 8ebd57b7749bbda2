"""Writes tiny pipelines as other programs save them: one file, with the names of the original repositories.

The reverse of what diffusers' `from_single_file` does for Stable Diffusion.
"""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_stable_diffusion(pipeline: Any, file: Path, without: tuple[str, ...] = (), **more: Tensor) -> Path:
    """Denoiser, autoencoder and text encoder of a Stable Diffusion pipeline, save those in `without`."""
    tensors = {}
    if "unet" not in without:
        depth = pipeline.unet.config.layers_per_block
        for key, tensor in pipeline.unet.state_dict().items():
            tensors[f"model.diffusion_model.{_unet_key(key, depth)}"] = tensor
    if "vae" not in without:
        num_levels = len(pipeline.vae.config.block_out_channels)
        for key, tensor in pipeline.vae.state_dict().items():
            name, value = _vae_entry(key, tensor, num_levels)
            tensors[f"first_stage_model.{name}"] = value
    if "text_encoder" not in without:
        for key, tensor in pipeline.text_encoder.state_dict().items():
            key = key.removeprefix("text_model.")
            tensors[f"cond_stage_model.transformer.text_model.{key}"] = tensor
    save_file({key: value.contiguous() for key, value in {**tensors, **more}.items()}, file)
    return file


def _unet_key(key: str, depth: int) -> str:
    for ours, theirs in {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }.items():
        if key.startswith(f"{ours}."):
            return _resnet(f"{theirs}{key.removeprefix(ours)}", is_resnet="resnets" in ours)
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key)
    assert found is not None, key
    way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (depth + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        # Behind the attention, where the block has one.
        place = 2 if block == 0 else 1
        return f"output_blocks.{block * (depth + 1) + depth}.{place}.{rest}"
    start = f"input_blocks.{block * (depth + 1) + layer + 1}"
    if way == "up":
        start = f"output_blocks.{block * (depth + 1) + layer}"
    place = 0 if kind == "resnets" else 1
    return _resnet(f"{start}.{place}.{rest}", is_resnet=kind == "resnets")


def _resnet(key: str, *, is_resnet: bool) -> str:
    for ours, theirs in (RESNET if is_resnet else {}).items():
        if f".{ours}." in key:
            return key.replace(f".{ours}.", f".{theirs}.")
    return key


def _vae_entry(key: str, tensor: Tensor, num_levels: int) -> tuple[str, Tensor]:
    if ".mid_block.attentions.0." in key:
        side, rest = key.split(".mid_block.attentions.0.")
        for ours, theirs in ATTENTION.items():
            if rest.startswith(f"{ours}."):
                is_matrix = tensor.ndim == 2
                value = tensor[:, :, None, None] if is_matrix else tensor  # once a convolution of one pixel
                return f"{side}.mid.attn_1.{theirs}.{rest.removeprefix(f'{ours}.')}", value
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    level = num_levels - 1
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{level - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{level - int(m[1])}.upsample", key)
    return key, tensor
