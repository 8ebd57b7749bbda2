"""Buckets: the row counts at which forward passes run. A step batch is padded to the next larger one.

Owns the sizes. The self-test finds the row counts at which a row has the same bits; for shapes that it has
not tested, the buckets are the multiples of 4.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

BUCKET_STEP = 4
"""Below 4 rows the kernels of a 2-D `Linear` depend on the row count."""


@dataclass(frozen=True)
class Buckets:
    """The buckets of one latent shape of a loaded model; past the largest of `sizes`, multiples of 4."""

    sizes: tuple[int, ...] = ()  # ascending

    def rows(self, num_rows: int) -> int:
        """The bucket of `num_rows` rows; 0 for no rows, as in a step without full ones."""
        if not num_rows:
            return 0
        index = bisect_left(self.sizes, num_rows)
        if index < len(self.sizes):
            return self.sizes[index]
        return -(-num_rows // BUCKET_STEP) * BUCKET_STEP

    def within(self, max_rows: int) -> int:
        """The largest bucket of no more than `max_rows`; the smallest one if all are larger."""
        if self.sizes:
            return self.sizes[max(0, bisect_right(self.sizes, max_rows) - 1)]
        return max(BUCKET_STEP, max_rows - max_rows % BUCKET_STEP)


MULTIPLES_OF_FOUR = Buckets()

BucketsByShape = Mapping[tuple[int, int], Buckets]
"""By height and width of the latents: a row count that is exact for one shape may not be for another."""

UNTESTED: BucketsByShape = MappingProxyType({})


def at(buckets: BucketsByShape, height: int, width: int) -> Buckets:
    """The buckets of latents of this shape: multiples of 4 if no others were found."""
    return buckets.get((height, width), MULTIPLES_OF_FOUR)


def shared(several: Iterable[BucketsByShape]) -> BucketsByShape:
    """The buckets, by latent shape, that all of `several` have."""
    first, *others = several
    return {
        shape: Buckets(tuple(size for size in one.sizes if all(size in at(o, *shape).sizes for o in others)))
        for shape, one in first.items()
    }
