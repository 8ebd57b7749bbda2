"""Checks on this very machine how far a row's bits depend on its step batch, and says what to promise.

Kernels are chosen by shape, so another CPU, GPU or thread count may choose otherwise: nothing is assumed.
Encoding and decoding always take one item, so they are only asked for the same numbers twice. It knows
families, not generations: samplers and guidance are `engine.rehearsal`'s.
"""

import hashlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from engine.attempt import unless_out_of_memory
from engine.buckets import BUCKET_STEP, MULTIPLES_OF_FOUR, UNTESTED, Buckets, BucketsByShape
from engine.errors import OutOfMemory
from engine.families.family import CachingFamily, Conditions, Encoding, Family
from engine.time_budget import TimeBudget

logger = logging.getLogger(__name__)

Promise = Literal["exact", "exact within a bucket", "within 1/255", "not repeatable"]
PROMISES: tuple[Promise, ...] = ("exact", "exact within a bucket", "within 1/255", "not repeatable")
"""Strongest first. A strict request equals its solo run under all but the last, and is refused there."""


FINE_SECONDS = 0.5
"""Only where a step of 4 rows takes no longer is every row count tried; else 2 and the multiples of 4."""


@dataclass(frozen=True)
class SelfTest:
    """What one model on this device can promise, and the row caps and buckets under which it holds."""

    promise: Promise
    row_limits: Mapping[int, int]  # max_pixels -> rows
    buckets: BucketsByShape


class HasLatents(Protocol):
    """What is to be known of a loaded model to tell the latents of an image."""

    pixels_per_latent: int
    latents_per_patch: int


def run_self_test(
    family: Family,
    row_limits: Mapping[int, int],
    budget: TimeBudget | None = None,
    *,
    is_compiled: bool = False,
    fine_seconds: float = FINE_SECONDS,
) -> SelfTest:
    """Compare the same rows at many row counts, in other places and among other neighbours.

    The row counts at which a row has the bits that it has among 4 become the buckets of the shape that was
    tried, a square of each class of pixels; all other shapes run at multiples of 4. A cap is lowered to the
    largest bucket below which no multiple of 4 is missing, if that keeps at least half of its rows: one
    large size that differs is worth less than an exact engine. Otherwise the promise is weaker, and the
    buckets are the multiples of 4. Where memory runs out above 4 rows, the cap is the largest that fitted.
    When the budget is spent, or would not last for a row count like the one before, the promise is
    `within 1/255` and the rest is left out: but for the two runs of one item each, which strict needs.
    """
    budget = budget or TimeBudget()
    weakest, limits = 0, {}
    buckets: dict[tuple[int, int], Buckets] = {}
    for max_pixels, configured_rows in row_limits.items():
        max_rows = configured_rows
        side = latent_side(family, max_pixels)
        if not all(map(_is_same, _alone(family, side), _alone(family, side))):
            weakest = 3
        limits[max_pixels] = max_rows
        if budget.is_spent():
            continue
        sizes = _Sizes(family, side)
        largest = max(BUCKET_STEP, MULTIPLES_OF_FOUR.rows(max_rows))
        candidates = _candidates(largest, is_fine=not is_compiled and sizes.seconds <= fine_seconds)
        found, num_rows_that_fit = _equal_in_time(sizes, candidates, budget)
        if num_rows_that_fit is not None:
            max_rows = limits[max_pixels] = min(max_rows, num_rows_that_fit)
        if not sizes.is_free_of_places:
            weakest = max(weakest, 2)
        if budget.is_spent():
            continue
        buckets[side, side] = Buckets(tuple(sorted(found)))
        num_exact_rows = largest_in_unison(found)
        if num_exact_rows < max_rows:
            if 2 * num_exact_rows >= max_rows:
                limits[max_pixels] = num_exact_rows
            else:
                weakest = max(weakest, 1)
    if budget.is_spent():
        weakest = max(weakest, 2)
    if weakest > 1:
        return SelfTest(PROMISES[weakest], limits, UNTESTED)
    if weakest == 1:  # the shapes were tried nonetheless
        buckets = dict.fromkeys(buckets, MULTIPLES_OF_FOUR)
    return SelfTest(PROMISES[weakest], limits, buckets)


def latent_side(family: HasLatents, max_pixels: int) -> int:
    """Of the square that stands for a class of pixels, in latents."""
    side = max(8, int(max_pixels**0.5) // family.pixels_per_latent)
    return side - side % family.latents_per_patch


def digest_of_one(family: Family, row_limits: Mapping[int, int]) -> str:
    """SHA-256 of the bits of one prompt, one forward pass and one image in each class of pixels."""
    digest = hashlib.sha256()
    for max_pixels in sorted(row_limits):
        for tensor in _alone(family, latent_side(family, max_pixels)):
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _candidates(largest: int, *, is_fine: bool) -> list[int]:
    """The row counts to try: a compiled model has each of them compiled, and a slow one takes its time."""
    return [rows for rows in range(1, largest + 1) if is_fine or rows == 2 or rows % BUCKET_STEP == 0]


def largest_in_unison(found: Collection[int]) -> int:
    """The largest of `found` below which no multiple of 4 is missing: shapes not tried run at these alone."""
    end = BUCKET_STEP
    while end in found:
        end += BUCKET_STEP
    return max((num_rows for num_rows in found if num_rows < end), default=BUCKET_STEP)


def _equal_in_time(
    sizes: "_Sizes", candidates: Sequence[int], budget: TimeBudget
) -> tuple[set[int], int | None]:
    """Those at which the probe has the reference's bits, as far as budget and memory last.

    The second value is the largest that fitted, where memory ran out, and else None.
    """
    found: set[int] = set()
    seconds, fitted = 0.0, BUCKET_STEP
    for num_rows in candidates:
        if budget.is_spent(seconds):
            break
        began_at = budget.used_seconds
        is_equal = sizes.try_rows(num_rows)
        if isinstance(is_equal, OutOfMemory):
            logger.warning(
                "%s: %d rows of %s do not fit, so its step batches are kept to %d",
                is_equal.code, num_rows, sizes, fitted,
            )  # fmt: skip
            return found, fitted
        if is_equal:
            found.add(num_rows)
        fitted = max(fitted, num_rows)
        seconds = budget.used_seconds - began_at
    return found, None


class _Sizes:
    """One probe row at one size of latents, as it comes out among 4 rows: what other row counts must give."""

    def __init__(self, family: Family, side: int) -> None:
        self._family, self._side = family, side
        self._encoding = _encode(family)  # once: a text encoder may be larger than the model
        self.is_free_of_places = True  # at the multiples of 4, which all promises but the last stand on
        outputs = list(_probe_outputs(family, self._encoding, side, BUCKET_STEP))
        outputs += _probe_outputs(family, self._encoding, side, BUCKET_STEP, neighbours=2)
        self.seconds = _step_seconds(family, self._encoding, side)
        self._reference = outputs[0]
        self._note_places(outputs)

    def __str__(self) -> str:
        pixels = self._side * self._family.pixels_per_latent
        return f"{pixels}x{pixels} pixels"

    def try_rows(self, num_rows: int) -> bool | OutOfMemory:
        """`_is_equal`, or that so many do not fit; raises that where they are no more than a bucket."""
        if num_rows <= BUCKET_STEP:
            return self._is_equal(num_rows)
        return unless_out_of_memory(lambda: self._is_equal(num_rows), self._family.device)

    def _is_equal(self, num_rows: int) -> bool:
        """Whether the probe has the reference's bits among so many rows, wherever it stands."""
        if num_rows == BUCKET_STEP:
            return self.is_free_of_places
        outputs = list(_probe_outputs(self._family, self._encoding, self._side, num_rows))
        if num_rows % BUCKET_STEP == 0:
            self._note_places(outputs)
        return all(torch.equal(self._reference, output) for output in outputs)

    def _note_places(self, outputs: Sequence[Tensor]) -> None:
        if any(not torch.equal(outputs[0], other) for other in outputs[1:]):
            self.is_free_of_places = False


@torch.inference_mode()
def _encode(family: Family) -> Encoding:
    return family.encode("a self-test")


@torch.inference_mode()
def _step_seconds(family: Family, encoding: Encoding, side: int) -> float:
    """Of one forward pass of 4 rows that is warm, until its output is there to be read."""
    told = _told(encoding)
    latents = _noise((BUCKET_STEP, family.latent_channels, side, side), seed=0, family=family)
    timesteps = torch.full((BUCKET_STEP,), 500.0, device=family.device)
    latents.cpu()
    started_at = time.perf_counter()
    family.predict(latents, timesteps, told).cpu()
    return time.perf_counter() - started_at


@torch.inference_mode()
def _alone(family: Family, side: int) -> list[Tensor]:
    """What one prompt, one forward pass and one image come to, the same request each time."""
    encoding = _encode(family)
    row = _noise((1, family.latent_channels, side, side), seed=0, family=family)
    rows = row.expand(BUCKET_STEP, -1, -1, -1)
    output = family.predict(rows, torch.full((BUCKET_STEP,), 500.0, device=family.device), _told(encoding))
    return [encoding.prompt_embeds, encoding.pooled_embeds, output, family.decode(row)]


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Bit for bit; a decoder may overflow on noise in half precision, and may do so twice."""
    return torch.equal(first.nan_to_num(), second.nan_to_num())


def _told(encoding: Encoding, num_rows: int = BUCKET_STEP) -> Conditions:
    return Conditions.of([encoding] * num_rows, torch.ones(num_rows, device=encoding.prompt_embeds.device))


@torch.inference_mode()
def _probe_outputs(
    family: Family, encoding: Encoding, side: int, num_rows: int, neighbours: int = 1
) -> Iterator[Tensor]:
    """The model output for one fixed row, wherever it stood; `neighbours` is the seed of the others."""
    shape = (family.latent_channels, side, side)
    probe = _noise(shape, seed=0, family=family)
    seeds = [neighbours * 1000 + row for row in range(num_rows)]
    latents = torch.stack([_noise(shape, seed=seed, family=family) for seed in seeds])
    timesteps = torch.linspace(1, 999, num_rows, device=family.device)
    places = sorted({0, num_rows // 2, num_rows - 1})
    for place in places:
        latents[place], timesteps[place] = probe, 500.0
    for output in _outputs(family, latents, timesteps, _told(encoding, num_rows)):
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
