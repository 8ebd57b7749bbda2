"""Checks on this very machine how far a row's bits depend on its step batch, and says what to promise.

Kernels are chosen by shape, so another CPU, GPU or thread count may choose otherwise: nothing is assumed.
Only the forward pass is tested, since encoding and decoding always take one item and the rest is
elementwise. It knows families, not generations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engine.families.family import CachingFamily, Conditions, Family
from engine.policy import SMALLEST_BUCKET, bucket_rows

Promise = Literal["exact", "exact within a bucket", "within 1/255"]
PROMISES: tuple[Promise, ...] = ("exact", "exact within a bucket", "within 1/255")
"""Strongest first."""


@dataclass(frozen=True)
class SelfTest:
    """What one model on this device can promise, and the row caps under which the promise holds."""

    promise: Promise
    row_limits: Mapping[int, int]  # max_pixels -> rows


def run_self_test(family: Family, row_limits: Mapping[int, int]) -> SelfTest:
    """Compare the same rows at every bucket, in other places and among other neighbours.

    A cap is lowered to the largest bucket up to which all agree, if that keeps at least half of its rows:
    one large bucket that differs is worth less than an exact engine. Otherwise the promise is weaker.
    """
    weakest, limits = 0, {}
    for max_pixels, max_rows in row_limits.items():
        side = max(8, int(max_pixels**0.5) // family.pixels_per_latent)
        side -= side % family.latents_per_patch
        reference: Tensor | None = None
        num_exact_rows = SMALLEST_BUCKET
        for bucket in range(SMALLEST_BUCKET, bucket_rows(max_rows) + 1, SMALLEST_BUCKET):
            outputs = list(_probe_outputs(family, side, bucket))
            if any(not torch.equal(outputs[0], other) for other in outputs[1:]):
                weakest = 2
            if reference is None:
                reference = outputs[0]
            if not torch.equal(reference, outputs[0]):
                break
            num_exact_rows = bucket
        limits[max_pixels] = max_rows
        if num_exact_rows < max_rows:
            if 2 * num_exact_rows >= max_rows:
                limits[max_pixels] = num_exact_rows
            else:
                weakest = max(weakest, 1)
    return SelfTest(PROMISES[weakest], limits)


@torch.inference_mode()
def _probe_outputs(family: Family, side: int, bucket: int) -> Iterator[Tensor]:
    """The model output for one fixed row, wherever it stood and whoever stood beside it."""
    encoding = family.encode("a self-test")
    shape = (family.latent_channels, side, side)
    probe = _noise(shape, seed=0, family=family)
    for seed in (1, 2) if bucket == SMALLEST_BUCKET else (1,):
        latents = torch.stack([_noise(shape, seed=seed * 1000 + row, family=family) for row in range(bucket)])
        timesteps = torch.linspace(1, 999, bucket, device=family.device)
        places = (0, bucket // 2, bucket - 1)
        for place in places:
            latents[place], timesteps[place] = probe, 500.0
        conditions = Conditions.of([encoding] * bucket, torch.ones(bucket, device=family.device))
        for output in _outputs(family, latents, timesteps, conditions):
            yield from (output[place].clone() for place in places)


def _outputs(family: Family, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Iterator[Tensor]:
    """What must be equal wherever a row stands, `(R, ...)`; with a step cache, a shallow step besides.

    A full step must also be the same with a step cache and without: both kinds of rows share the pass.
    """
    output = family.predict(latents, timesteps, conditions)
    if not (isinstance(family, CachingFamily) and family.can_cache_steps):
        yield output
        return
    num_rows = len(latents)
    full, features = family.predict_partly(
        latents, timesteps, conditions, num_deep_rows=num_rows, features=None
    )
    shallow, _ = family.predict_partly(latents, timesteps, conditions, num_deep_rows=0, features=features)
    for one in (output, full):
        yield torch.cat([one.flatten(1), features.flatten(1), shallow.flatten(1)], dim=1)


def _noise(shape: tuple[int, ...], seed: int, family: Family) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=family.dtype).to(family.device)
