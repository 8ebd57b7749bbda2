"""Turns an exception that a library raises while it reads a model into a `LoadError` with a remedy.

Owns the remedies, by exception class and by the messages of diffusers, transformers, safetensors and torch.
It does not know which model is read: `engine.loading.load` adds its name.
"""

import json
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError

from engine.device_work import translate
from engine.errors import LoadError, OutOfMemory
from engine.loading.layout import Incomplete

ONE_REVISION = "take weights and config.json from one revision"
AGAIN = "fetch its files again, or choose another revision"
MAX_CHARACTERS = 400
"""Longest part of a library's message that is kept: some messages list every weight of a model."""
MAX_NAMED = 3
CONFIG_READERS = ("from_config", "from_dict")
"""Functions of the libraries that build a component from its configuration."""
REMEDIES: tuple[tuple[str, str], ...] = (
    (r"meta tensor", f"weights are missing: {ONE_REVISION}"),
    (r"size mismatch|expected shape|mismatched|decodes to shape|ignore_mismatched_sizes", ONE_REVISION),
    (
        r"(?i)unknown quantization|quantization type|quant_method",
        "choose weights with another quantization",
    ),
    (r"(?i)out of range|index out of", ONE_REVISION),
    (r"pip install|not installed|requires the|No module named", "install the package that it names"),
    (r"(?i)permission denied", "give the worker's user permission to read them"),
    (r"(?i)torch_dtype|has no attribute .(?:float|bfloat|int)", "correct the dtype in its config.json"),
    (r"(?i)JSON|Expecting value|Extra data|utf-8", "fetch that file again"),
)
"""Pattern of an error message, and its remedy."""


def failure(error: Exception, classes: Mapping[str, tuple[str, str]]) -> LoadError:
    """Return the `LoadError` for an exception raised by reading; re-raises it if memory ran out.

    `classes` maps each component to its library and class; the message names the component that failed.
    """
    if isinstance(error, Incomplete):
        return LoadError(f"{error}: fetch what is missing, or choose a revision that has it")
    if isinstance(error, LoadError):
        return error
    if isinstance(translate(error), OutOfMemory):
        raise error
    is_configuration = _is_about_configuration(error)
    what = "configuration" if is_configuration else "files"
    said = " ".join(str(error).split())
    if len(said) > MAX_CHARACTERS:
        said = f"{said[:MAX_CHARACTERS]}…"
    return LoadError(
        f"{_component_in(error, classes)}{what} cannot be read ({type(error).__name__}: {said}):"
        f" {remedy(error)}"
    )


def remedy(error: Exception) -> str:
    """Return what the operator can do about `error`."""
    said = str(error)
    for pattern, found in REMEDIES:
        if re.search(pattern, said):
            return found
    if isinstance(error, ImportError):
        return "install the package that it names"
    if isinstance(error, SafetensorError | EOFError | json.JSONDecodeError | UnicodeDecodeError):
        return "fetch that file again"
    if _is_about_configuration(error):
        return "correct its config.json, or use a revision that the installed library can read"
    return AGAIN


def check_complete(named_modules: Mapping[str, Any]) -> None:
    """Raise `LoadError` for a component with weights that no file contained."""
    for name, module in named_modules.items():
        if isinstance(module, torch.nn.Module):
            tensors = (*module.named_parameters(), *module.named_buffers())
            missing = [key for key, tensor in tensors if tensor.is_meta]
            if missing:
                raise LoadError(missing_weights(f"{name} ({type(module).__name__})", missing))


def missing_weights(named: str, missing: Iterable[str]) -> str:
    """Return the error text for weights that no file contains."""
    keys = list(missing)
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return f"its {named}: no file contains the weights {', '.join(keys[:MAX_NAMED])}{more}: {ONE_REVISION}"


def _is_about_configuration(error: Exception) -> bool:
    """Whether a value of the configuration was refused, before any weights were read."""
    if isinstance(error, AttributeError | KeyError | TypeError):
        return True
    return any(frame.f_code.co_name in CONFIG_READERS for frame, _ in traceback.walk_tb(error.__traceback__))


def _component_in(error: Exception, classes: Mapping[str, tuple[str, str]]) -> str:
    """Return the name of the component that failed, found in the traceback's frames of diffusers' loaders."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_locals.get("name"))
        if frame.f_code.co_name in ("load_sub_model", "load_single_file_sub_model") and name in classes:
            return f"its {name} ({classes[name][1]}): its "
    return "its "
