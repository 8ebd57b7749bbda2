"""Reads a model whose weights are in a single file, as other programs save it.

Owns which components the file contains; the others are read from the folder with its configuration. diffusers
owns the names of weights in the file. It fetches nothing.
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
    """Whether a path names a weights file rather than a folder."""
    return name.endswith((SUFFIX, ".gguf", ".ckpt", ".bin", ".pt", ".pth"))


def check_suffix(name: str) -> None:
    """Raise `LoadError` for weights that are not safetensors."""
    if name.endswith(".gguf"):
        raise LoadError(
            f"{name} contains one component: set `path` to the model's folder, and `transformer` to this file"
        )
    if not name.endswith(SUFFIX):
        raise LoadError(f"weights are read as safetensors only, not {name}: choose a .safetensors file")


def components_in(file: Path, layout: Layout) -> list[str]:
    """Return the components that a file contains weights for; raises `LoadError`."""
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
    """Return the pipeline of a file, with missing components from `folder`; raises any error of diffusers.

    `held` are the components that are not read from `folder`, `given` are those that have been read already.
    """
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
    """Raise `LoadError` for a class that diffusers reads only from folders: it would ignore the file."""
    denoiser = denoiser_among(layout.components) or ""
    kinds = [pipeline_class]
    if denoiser in layout.classes and denoiser not in given:
        kinds.append(_class(*layout.classes[denoiser]))
    for kind in kinds:
        if not hasattr(kind, "from_single_file"):
            raise LoadError(
                f"diffusers cannot read a {kind.__name__} from a single file: use the model as a folder"
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
