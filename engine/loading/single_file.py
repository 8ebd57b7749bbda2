"""A model whose weights lie in one file, as other programs save it, with its configuration beside it.

Owns which components such a file holds; what it lacks is read from the folder of the configuration. How its
weights are called there is diffusers' to know, and nothing is fetched.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    LDM_VAE_KEYS,
    is_clip_model_in_single_file,
    is_t5_in_single_file,
)
from torch.nn import Module

from engine.errors import LoadError
from engine.loading.layout import Layout
from engine.loading.weight_files import tensors_in
from engine.pipelines.components import denoiser_among

SUFFIX = ".safetensors"


def is_weights(name: str) -> bool:
    """Whether a path names a file of weights and no folder."""
    return name.endswith((SUFFIX, ".gguf", ".ckpt", ".bin", ".pt", ".pth"))


def check_suffix(name: str) -> None:
    """Raise `LoadError` for weights that are no safetensors."""
    if name.endswith(".gguf"):
        raise LoadError(
            f"{name} holds one component: give `path` the folder of the model, and `transformer` this file"
        )
    if not name.endswith(SUFFIX):
        raise LoadError(f"weights are read as safetensors only, and this is {name}: choose one that ends so")


def components_in(file: Path, layout: Layout) -> list[str]:
    """The components that a file has weights for, whatever its configuration says; raises `LoadError`."""
    keys = dict.fromkeys(tensors_in(file))
    denoiser = denoiser_among(layout.components)
    return [
        name
        for name, (_, class_name) in layout.classes.items()
        if name == denoiser or _has(keys, name, class_name)
    ]


def read_single_file(
    pipeline_class: Any,
    file: Path,
    folder: Path,
    layout: Layout,
    held: Collection[str],
    given: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    variant: str | None,
) -> Any:
    """The pipeline of a file, with what it does not hold from `folder`; raises whatever diffusers raises."""
    _check_readable(pipeline_class, layout, given)
    beside = {
        name: _read_component(folder, name, library, class_name, dtype, variant)
        for name, (library, class_name) in layout.classes.items()
        if name not in held and issubclass(_class(library, class_name), Module)
    }
    return pipeline_class.from_single_file(
        str(file), config=str(folder), local_files_only=True, dtype=dtype, **{**given, **beside}
    )


def _check_readable(pipeline_class: Any, layout: Layout, given: Mapping[str, Any]) -> None:
    """Raise `LoadError` for a class that diffusers reads from folders alone: it would leave the file out."""
    denoiser = denoiser_among(layout.components) or ""
    kinds = [pipeline_class]
    if denoiser in layout.classes and denoiser not in given:
        kinds.append(_class(*layout.classes[denoiser]))
    for kind in kinds:
        if not hasattr(kind, "from_single_file"):
            raise LoadError(
                f"diffusers reads no {kind.__name__} from a single file: take the model as a folder"
            )


def _has(keys: Mapping[str, None], name: str, class_name: str) -> bool:
    if name == "vae":
        is_readable = hasattr(_class("diffusers", class_name), "from_single_file")
        return is_readable and any(key.startswith(tuple(LDM_VAE_KEYS)) for key in keys)
    if not name.startswith("text_encoder"):
        return False
    kind = _class("transformers", class_name)
    is_t5 = class_name == "T5EncoderModel" and is_t5_in_single_file(keys)
    return is_t5 or bool(is_clip_model_in_single_file(kind, keys))


def _class(library: str, name: str) -> Any:
    return getattr(diffusers if library == "diffusers" else transformers, name)


def _read_component(
    folder: Path, name: str, library: str, class_name: str, dtype: torch.dtype, variant: str | None
) -> Any:
    there = variant if variant and list((folder / name).glob(f"*.{variant}*.safetensors")) else None
    return _class(library, class_name).from_pretrained(
        folder / name, dtype=dtype, variant=there, use_safetensors=True, local_files_only=True
    )
