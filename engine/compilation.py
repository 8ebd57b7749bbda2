"""When `torch.compile` may compile: while models are loaded, the sizes that their tiers name; never later.

A shape takes from seconds to minutes to compile. Were that left to the first job that asks for it, every
job of the worker would stand still meanwhile, and the watchdog could not tell it from a hung step. So what
was not compiled by then runs as it was written: always, hence with the same bits each time.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from engine.attempt import unless_out_of_memory
from engine.buckets import BUCKET_STEP, at
from engine.errors import OutOfMemory
from engine.families.family import Conditions, Family
from engine.time_budget import TimeBudget

logger = logging.getLogger(__name__)

Size = tuple[int, int]
"""Width and height, pixels."""


@contextmanager
def only_here(*, is_wanted: bool) -> Iterator[None]:
    """Let what runs inside be compiled, and nothing that runs in this process afterwards."""
    if not is_wanted:
        yield
        return
    torch.compiler.set_stance("default")
    try:
        yield
    finally:
        torch.compiler.set_stance("eager_on_recompile")  # what is compiled stays in use


@contextmanager
def as_written() -> Iterator[None]:
    """Run inside what every size that no tier names will run."""
    with torch.compiler.set_stance("force_eager"):
        yield


def compile_sizes(
    family: Family, sizes: Iterable[Size], row_limits: Mapping[int, int], budget: TimeBudget
) -> dict[int, int]:
    """Compile every bucket of each of these sizes while the time lasts; the row limits that fit."""
    limits = dict(row_limits)
    for width, height in sizes:
        max_pixels = min(limit for limit in limits if limit >= width * height)
        pixels = family.pixels_per_latent
        buckets = at(family.buckets, height // pixels, width // pixels)
        fitted = BUCKET_STEP
        for rows in sorted({buckets.rows(num_rows) for num_rows in range(1, limits[max_pixels] + 1)}):
            if budget.is_spent():
                return limits
            if not _fits(family, width, height, rows):
                logger.warning(
                    "%s: %d rows of %dx%d pixels do not fit, so its step batches are kept to %d",
                    OutOfMemory.code, rows, width, height, fitted,
                )  # fmt: skip
                limits[max_pixels] = fitted
                break
            fitted = rows
    return limits


def _fits(family: Family, width: int, height: int, num_rows: int) -> bool:
    """Whether so many rows do; raises what was wrong where they are no more than the smallest bucket."""
    if num_rows <= BUCKET_STEP:
        _predict(family, width, height, num_rows)
        return True
    outcome = unless_out_of_memory(lambda: _predict(family, width, height, num_rows), family.device)
    return not isinstance(outcome, OutOfMemory)


@torch.inference_mode()
def _predict(family: Family, width: int, height: int, num_rows: int) -> None:
    """A forward pass like any other: torch compiles what it meets."""
    pixels, encoding = family.pixels_per_latent, family.encode("a size")
    shape = (num_rows, family.latent_channels, height // pixels, width // pixels)
    latents = torch.zeros(shape, dtype=family.dtype, device=family.device)
    timesteps, scales = torch.full((2, num_rows), 500.0, device=family.device)
    family.predict(latents, timesteps, Conditions.of([encoding] * num_rows, scales))
