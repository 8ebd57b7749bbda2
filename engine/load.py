"""From folders of weights to an `Engine` on one device, self-tested and ready to start.

Owns the choice of family and dtype and the thread count. The caller owns the process: core affinity for
`cpu:N`, `CUDA_VISIBLE_DEVICES` for `cuda:N` (so that the device inside is always `cuda:0`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.engine import Engine
from engine.errors import LoadError
from engine.families.family import Family
from engine.families.stable_diffusion import StableDiffusion
from engine.self_test import PROMISES, run_self_test

FAMILIES: Mapping[str, Callable[..., Family]] = {"stable_diffusion": StableDiffusion.load}


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from; `revision` and `local_files_only` matter for a hub id only."""

    name: str
    path: str
    family: str = "stable_diffusion"
    revision: str | None = None
    local_files_only: bool = True


def load_engine(
    models: Sequence[ModelSpec],
    *,
    device: str,
    row_limits: Mapping[str, Mapping[int, int]],
    num_threads: int | None = None,
    dtype: torch.dtype | None = None,
) -> Engine:
    """Load `models` onto `device` (`cpu:N` or `cuda:N`) and run the self-test; raises `LoadError`.

    `row_limits` gives, for each model, the most rows of a step batch up to so many pixels
    (`{"tiny": {16384: 16, 36864: 8}}`); what has more pixels than the largest is refused.
    """
    torch_device = _device(device)
    if torch_device.type == "cpu" and num_threads is not None:
        torch.set_num_threads(num_threads)
    families, limits, promises = {}, {}, []
    for spec in models:
        family = _load_family(spec, torch_device, dtype or _default_dtype(torch_device))
        result = run_self_test(family, row_limits[spec.name])
        families[spec.name], limits[spec.name] = family, result.row_limits
        promises.append(result.promise)
    return Engine(families, limits, promise=max(promises, key=PROMISES.index))


def _device(name: str) -> torch.device:
    kind, _, _ = name.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "cuda" and torch.cuda.is_available():
        return torch.device("cuda:0")
    raise LoadError(f"device {name!r} is not there")


def _default_dtype(device: torch.device) -> torch.dtype:
    """Full precision on CPU, half on CUDA (not yet seen on a GPU)."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _load_family(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Family:
    if spec.family not in FAMILIES:
        raise LoadError(f"model {spec.name!r}: there is no family {spec.family!r}")
    try:
        return FAMILIES[spec.family](
            spec.path,
            revision=spec.revision,
            local_files_only=spec.local_files_only,
            device=device,
            dtype=dtype,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise LoadError(f"model {spec.name!r} from {spec.path!r}: {error}") from error
