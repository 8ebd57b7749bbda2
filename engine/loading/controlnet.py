"""Reads a ControlNet from a folder or a hub id onto its device.

Owns the choice of its files and the errors for broken ones. It knows no pipeline: the first image shows
whether the ControlNet fits the model.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch

from engine.device_work import translate
from engine.errors import LoadError, OutOfMemory
from engine.loading.hub import Hub, names_in, text_in
from engine.loading.layout import files_of_component
from engine.loading.optimization import pad_small_linears
from engine.loading.read_pipeline import Source, dtype_of
from engine.loading.weight_files import FileFacts, facts_of

CONFIG = "config.json"


def read_controlnet(source: Source, device: torch.device, hub: Hub) -> tuple[Any, FileFacts]:
    """Return the ControlNet on `device` and the files that it was read from; raises `LoadError`."""
    try:
        folder = hub.component(
            source.path,
            revision=source.revision,
            component="controlnet",
            variant=source.variant,
            local_files_only=source.local_files_only,
        )
        files = files_of_component(names_in(folder), "controlnet", source.variant, text_in(folder))
        module = _read(_class_of(folder), folder, source, device)
    except LoadError as error:
        raise LoadError(f"controlnet {source.path!r}: {error}") from error
    if source.optimization.channels_last:
        module.to(memory_format=torch.channels_last)
    pad_small_linears(module)
    return module.to(device), facts_of({f"controlnet/{name}": folder / name for name in files})


def _class_of(folder: Path) -> Any:
    try:
        name = str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LoadError(f"its {CONFIG} names no class ({type(error).__name__})") from error
    if "ControlNet" not in name or not hasattr(diffusers, name):
        raise LoadError(f"{name} is not a ControlNet class of diffusers {diffusers.__version__}")
    if "Union" in name:
        raise LoadError(f"a {name} needs a control mode with each image, and requests have none")
    return getattr(diffusers, name)


def _read(controlnet_class: Any, folder: Path, source: Source, device: torch.device) -> Any:
    try:
        return controlnet_class.from_pretrained(
            folder,
            dtype=dtype_of(source.dtype, device),
            variant=source.variant,
            use_safetensors=True,
            local_files_only=True,
        )
    except Exception as error:  # the libraries may raise any exception for a broken file
        if isinstance(translate(error), OutOfMemory):
            raise
        raise LoadError(f"its files cannot be read ({type(error).__name__}: {error})") from error
