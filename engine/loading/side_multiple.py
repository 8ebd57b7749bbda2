"""What the sides of a pipeline's images are multiples of, read from the configuration of its components.

Owns how the pipelines of diffusers compute `vae_scale_factor`, pack latents into patches, and check a size.
It knows no list of classes or models, and builds none.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Mapping
from typing import Any

LEAST = 8
"""Every side is a multiple of that."""
WHOLE_FACTORS = ("spatial_compression_ratio", "scale_factor_spatial")
"""Entries of an autoencoder's configuration that say how many pixels a latent has."""
MAX_LEVELS = 8
MAX_FACTOR = 1024


def pixels_per_latent(name: str, autoencoder: Mapping[str, Any]) -> int:
    """`vae_scale_factor`, as pipelines compute it; `name` is that of the autoencoder, empty without one."""
    if not name:
        return 1  # the denoiser works on pixels
    factor = _scale_factor(autoencoder)
    # Kandinsky's pipelines round the sides of an image up to the square of it.
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
    return LEAST


def patch_of(index: Mapping[str, Any], denoiser: Mapping[str, Any], autoencoder: Mapping[str, Any]) -> int:
    """How many latents along a side are one token, as the denoiser, pipeline or autoencoder says."""
    entries = [denoiser.get("patch_size"), denoiser.get("all_patch_size"), index.get("patch_size")]
    if not any(largest(autoencoder.get(entry)) for entry in WHOLE_FACTORS):  # they count its patches too
        entries.append(autoencoder.get("patch_size"))
    return max(largest(entry) or 1 for entry in entries)


def largest(value: object) -> int | None:
    """The largest whole number of a configuration's entry, which can be a list; None where there is none."""
    values = value if isinstance(value, list | tuple) else [value]
    return max((one for one in values if type(one) is int and 0 < one <= MAX_FACTOR), default=None)


def side_multiple(
    pipeline_class: Any, factor: int, patch: int, index: Mapping[str, Any], denoiser: Mapping[str, Any]
) -> int:
    """What both sides of an image are multiples of, in pixels."""
    values = {
        "self.vae_scale_factor": factor,
        "self.patch_size": largest(index.get("patch_size")) or patch,
        "self.transformer.config.patch_size": largest(denoiser.get("patch_size")) or 1,
    }
    checked = _checked(pipeline_class, values)
    if not checked and hasattr(pipeline_class, "_pack_latents"):
        checked = [2 * factor]  # two latents a side become one token, as FLUX has it
    return math.lcm(LEAST, factor * patch, *checked)


def _checked(pipeline_class: Any, values: Mapping[str, int]) -> list[int]:
    """The numbers N of `height % N` in the pipeline's own check of a request."""
    check = getattr(pipeline_class, "check_inputs", None)
    if check is None:
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(check)))
    rests = [one for one in ast.walk(tree) if isinstance(one, ast.BinOp) and isinstance(one.op, ast.Mod)]
    found = [_value(one.right, values) for one in rests if ast.unparse(one.left) in ("height", "width")]
    return [one for one in found if one and one <= MAX_FACTOR]


def _value(expression: ast.expr, values: Mapping[str, int]) -> int | None:
    """A whole number, one of `values`, or a product of these; None for anything else."""
    if isinstance(expression, ast.Constant) and type(expression.value) is int:
        return expression.value
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.Mult):
        left, right = _value(expression.left, values), _value(expression.right, values)
        return left * right if left and right else None
    return values.get(ast.unparse(expression))
