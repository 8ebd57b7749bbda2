"""Checks that the package for weights that were published quantized is installed.

Owns the names of the quantization methods in `config.json`. It quantizes nothing:
`engine.loading.optimization` does.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

from engine.errors import LoadError

LOCKED = "pip install --no-deps -r requirements-quantization.lock"
PACKAGES: Mapping[str, tuple[str, str]] = {
    "gguf": ("gguf", LOCKED),
    "torchao": ("torchao", LOCKED),
    "bitsandbytes": ("bitsandbytes", "pip install bitsandbytes"),
    "quanto": ("optimum.quanto", "pip install optimum-quanto"),
}
"""Method -> module that reads its weights, and the command that installs it."""


def check_quantization(named: str, config: Mapping[str, Any]) -> None:
    """Raise `LoadError` if reading a component needs a package that is not installed.

    `named` is the component in error texts. `config` is its `config.json`; a `quantization_config` in it says
    that the weights are quantized.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return
    if not isinstance(quantization, dict):
        raise LoadError(
            f"{named}: its quantization_config is not an object: use config.json as it was published"
        )
    method = quantization.get("quant_method")
    if method is None and (quantization.get("load_in_8bit") or quantization.get("load_in_4bit")):
        method = "bitsandbytes"  # older configurations have no quant_method
    check_package(named, str(method))


def check_package(named: str, method: str) -> None:
    """Raise `LoadError` for a method that is unknown, or whose package is not installed."""
    if method not in PACKAGES:
        raise LoadError(
            f"{named} is quantized by {method!r}, which is not one of {', '.join(PACKAGES)}:"
            " choose weights that are not quantized, or quantized by one of these"
        )
    module, install = PACKAGES[method]
    if not _is_installed(module):
        package = module.replace(".", "-")
        raise LoadError(
            f"{named} is quantized by {method}, and the package {package} is not installed: {install}"
        )


def is_quantized(module: Any) -> bool:
    """Whether the weights of a loaded component are quantized."""
    return getattr(module, "hf_quantizer", None) is not None or getattr(module, "is_quantized", False)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False
