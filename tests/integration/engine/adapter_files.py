"""Writes adapters with random weights for a pipeline, in the formats that people send."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "v_proj", "fc1")


def layers_of(module: nn.Module, endings: Sequence[str]) -> list[tuple[str, Any]]:
    """The linear layers and convolutions whose paths end so."""
    return [
        (path, one)
        for path, one in module.named_modules()
        if isinstance(one, nn.Linear | nn.Conv2d) and path.endswith(tuple(endings))
    ]


def weights(
    module: nn.Module, endings: Sequence[str], *, rank: int, seed: int, loudness: float = 1.0
) -> dict[str, tuple[Tensor, Tensor]]:
    """By path the two weights of each layer, loud enough to be seen."""
    noise = torch.Generator().manual_seed(seed)
    made = {}
    for path, one in layers_of(module, endings):
        num_inputs = one.weight[0].numel()
        down = torch.randn(rank, *one.weight.shape[1:], generator=noise) * num_inputs**-0.5
        up = torch.randn(one.weight.shape[0], rank, generator=noise) * loudness * rank**-0.5
        made[path] = (down, up[..., None, None] if isinstance(one, nn.Conv2d) else up)
    return made


def write(path: Path, layers: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]) -> Path:
    """A file in diffusers' format: by component, what `weights` made."""
    tensors = {}
    for component, made in layers.items():
        for place, (down, up) in made.items():
            tensors[f"{component}.{place}.lora_A.weight"] = down.contiguous()
            tensors[f"{component}.{place}.lora_B.weight"] = up.contiguous()
    save_file(tensors, path)
    return path


def write_kohya(path: Path, made: Mapping[str, tuple[Tensor, Tensor]], *, alpha: float) -> Path:
    """A file of a UNet in the format of kohya's trainer."""
    tensors = {}
    for place, (down, up) in made.items():
        name = f"lora_unet_{place.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = down.contiguous()
        tensors[f"{name}.lora_up.weight"] = up.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path
