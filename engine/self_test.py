"""Checks on this very machine how far a row's bits depend on its step batch, and says what to promise.

Kernels are chosen by shape, so another CPU, GPU or thread count may choose otherwise: nothing is assumed.
Encoding and decoding always take one item, so they are only asked for the same numbers twice. It knows
families, not generations: samplers and guidance are `engine.rehearsal`'s.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engine.families.family import CachingFamily, Conditions, Encoding, Family
from engine.policy import SMALLEST_BUCKET, bucket_rows

Promise = Literal["exact", "exact within a bucket", "within 1/255", "not repeatable"]
PROMISES: tuple[Promise, ...] = ("exact", "exact within a bucket", "within 1/255", "not repeatable")
"""Strongest first. A strict request equals its solo run under all but the last, and is refused there."""


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
        if not all(map(_is_same, _alone(family, side), _alone(family, side))):
            weakest = 3
        reference: Tensor | None = None
        num_exact_rows = SMALLEST_BUCKET
        for bucket in range(SMALLEST_BUCKET, bucket_rows(max_rows) + 1, SMALLEST_BUCKET):
            outputs = list(_probe_outputs(family, side, bucket))
            if any(not torch.equal(outputs[0], other) for other in outputs[1:]):
                weakest = max(weakest, 2)
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
def _alone(family: Family, side: int) -> list[Tensor]:
    """What one prompt, one forward pass and one image come to, the same request each time."""
    encoding = family.encode("a self-test")
    row = _noise((1, family.latent_channels, side, side), seed=0, family=family)
    rows = row.expand(SMALLEST_BUCKET, -1, -1, -1)
    output = family.predict(
        rows, torch.full((SMALLEST_BUCKET,), 500.0, device=family.device), _told(encoding)
    )
    return [encoding.prompt_embeds, encoding.pooled_embeds, output, family.decode(row)]


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Bit for bit; a decoder may overflow on noise in half precision, and may do so twice."""
    return torch.equal(first.nan_to_num(), second.nan_to_num())


def _told(encoding: Encoding, num_rows: int = SMALLEST_BUCKET) -> Conditions:
    return Conditions.of([encoding] * num_rows, torch.ones(num_rows, device=encoding.prompt_embeds.device))


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
        for output in _outputs(family, latents, timesteps, _told(encoding, bucket)):
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
