"""When `torch.compile` may compile: while models are loaded, the sizes that their tiers name; never later.

A shape takes from seconds to minutes to compile. Were that left to the first job that asks for it, every
job of the worker would stand still meanwhile, and the watchdog could not tell it from a hung step. So what
was not compiled by then runs as it was written: always, hence with the same bits each time.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from engine.buckets import at
from engine.families.family import Conditions, Family
from engine.time_budget import TimeBudget

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
) -> bool:
    """Compile every bucket of each of these sizes; whether the time lasted."""
    for width, height in sizes:
        max_rows = row_limits[min(limit for limit in row_limits if limit >= width * height)]
        pixels = family.pixels_per_latent
        buckets = at(family.buckets, height // pixels, width // pixels)
        for rows in sorted({buckets.rows(num_rows) for num_rows in range(1, max_rows + 1)}):
            if budget.is_spent():
                return False
            _predict(family, width, height, rows)
    return True


@torch.inference_mode()
def _predict(family: Family, width: int, height: int, num_rows: int) -> None:
    """A forward pass like any other: torch compiles what it meets."""
    pixels, encoding = family.pixels_per_latent, family.encode("a size")
    shape = (num_rows, family.latent_channels, height // pixels, width // pixels)
    latents = torch.zeros(shape, dtype=family.dtype, device=family.device)
    timesteps, scales = torch.full((2, num_rows), 500.0, device=family.device)
    family.predict(latents, timesteps, Conditions.of([encoding] * num_rows, scales))
