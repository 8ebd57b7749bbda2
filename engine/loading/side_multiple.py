"""Computes the number that an image's sides must be multiples of, from the configuration of components.

Follows diffusers' pipelines in computing `vae_scale_factor`, packing latents into patches, and checking
sizes. It keeps no list of classes or models, and builds no model.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Mapping
from typing import Any

MIN_MULTIPLE = 8
"""Every side is a multiple of this."""
WHOLE_FACTORS = ("spatial_compression_ratio", "scale_factor_spatial")
"""Entries of an autoencoder's configuration with the side of a latent in pixels."""
MAX_LEVELS = 8
MAX_FACTOR = 1024


def pixels_per_latent(name: str, autoencoder: Mapping[str, Any]) -> int:
    """Return `vae_scale_factor` as pipelines compute it; `name` is the autoencoder's, or empty."""
    if not name:
        return 1  # the denoiser works on pixels
    factor = _scale_factor(autoencoder)
    # Kandinsky's pipelines round the sides of an image up to a multiple of its square.
    return factor * factor if name == "movq" else factor


def _scale_factor(autoencoder: Mapping[str, Any]) -> int:
    for entry in WHOLE_FACTORS:
        if found := largest(autoencoder.get(entry)):
            return found
    for entry, more in (
        ("encoder_block_out_channels", 0),
        ("block_out_channels", 0),
        ("temperal_downsample", 1),  # diffusers' spelling
    ):
        blocks = autoencoder.get(entry)
        if isinstance(blocks, list) and 0 < len(blocks) <= MAX_LEVELS:
            return int(2 ** (len(blocks) - 1 + more))
    return MIN_MULTIPLE


def patch_of(index: Mapping[str, Any], denoiser: Mapping[str, Any], autoencoder: Mapping[str, Any]) -> int:
    """Return the latents along the side of a token, from the denoiser, pipeline or autoencoder."""
    entries = [denoiser.get("patch_size"), denoiser.get("all_patch_size"), index.get("patch_size")]
    if not any(largest(autoencoder.get(entry)) for entry in WHOLE_FACTORS):  # these include its patches
        entries.append(autoencoder.get("patch_size"))
    return max(largest(entry) or 1 for entry in entries)


def largest(value: object) -> int | None:
    """Return the largest positive integer of an entry, which can be a list; None without one."""
    values = value if isinstance(value, list | tuple) else [value]
    return max((one for one in values if type(one) is int and 0 < one <= MAX_FACTOR), default=None)


def side_multiple(
    pipeline_class: Any, factor: int, patch: int, index: Mapping[str, Any], denoiser: Mapping[str, Any]
) -> int:
    """Return the number of pixels that both sides of an image must be multiples of."""
    values = {
        "self.vae_scale_factor": factor,
        "self.patch_size": largest(index.get("patch_size")) or patch,
        "self.transformer.config.patch_size": largest(denoiser.get("patch_size")) or 1,
    }
    checked = _checked(pipeline_class, values)
    if not checked and hasattr(pipeline_class, "_pack_latents"):
        checked = [2 * factor]  # as in FLUX: a token has two latents along a side
    return math.lcm(MIN_MULTIPLE, factor * patch, *checked)


def _checked(pipeline_class: Any, values: Mapping[str, int]) -> list[int]:
    """Return every N in `height % N` and `width % N` of the pipeline's `check_inputs`."""
    check = getattr(pipeline_class, "check_inputs", None)
    if check is None:
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(check)))
    rests = [one for one in ast.walk(tree) if isinstance(one, ast.BinOp) and isinstance(one.op, ast.Mod)]
    found = [_value(one.right, values) for one in rests if ast.unparse(one.left) in ("height", "width")]
    return [one for one in found if one and one <= MAX_FACTOR]


def _value(expression: ast.expr, values: Mapping[str, int]) -> int | None:
    """Return the value of an integer, of a name in `values`, or of a product of these; else None."""
    if isinstance(expression, ast.Constant) and type(expression.value) is int:
        return expression.value
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.Mult):
        left, right = _value(expression.left, values), _value(expression.right, values)
        return left * right if left and right else None
    return values.get(ast.unparse(expression))
