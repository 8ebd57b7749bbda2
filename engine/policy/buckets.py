"""The row counts at which forward passes run: a step batch is padded to the next of them.

Owns the sizes, and no tensors. It does not know what makes a size one: the self-test finds those at which
a row has the same bits, and until it has, they are the multiples of 4.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

BUCKET_STEP = 4
"""Below 4 rows the kernels of a 2-D `Linear` depend on the row count, so 4 is the measure of the others."""


@dataclass(frozen=True)
class Buckets:
    """Those of one latent shape of a loaded model; past the largest of `sizes` they are multiples of 4."""

    sizes: tuple[int, ...] = ()  # ascending

    def rows(self, num_rows: int) -> int:
        """The size at which so many rows run; no rows, as where none is a full one, run nowhere: at 0."""
        if not num_rows:
            return 0
        index = bisect_left(self.sizes, num_rows)
        if index < len(self.sizes):
            return self.sizes[index]
        return -(-num_rows // BUCKET_STEP) * BUCKET_STEP

    def within(self, max_rows: int) -> int:
        """The largest size of no more than `max_rows`; the smallest one, where all are larger."""
        if self.sizes:
            return self.sizes[max(0, bisect_right(self.sizes, max_rows) - 1)]
        return max(BUCKET_STEP, max_rows - max_rows % BUCKET_STEP)


MULTIPLES_OF_FOUR = Buckets()

BucketsByShape = Mapping[tuple[int, int], Buckets]
"""By height and width of the latents: a row count at which one shape keeps its bits may fail another."""

UNTESTED: BucketsByShape = MappingProxyType({})


def at(buckets: BucketsByShape, height: int, width: int) -> Buckets:
    """The buckets of latents of this shape: multiples of 4 where no others were found."""
    return buckets.get((height, width), MULTIPLES_OF_FOUR)


def shared(several: Iterable[BucketsByShape]) -> BucketsByShape:
    """What all of them have."""
    first, *others = several
    return {
        shape: Buckets(tuple(size for size in one.sizes if all(size in at(o, *shape).sizes for o in others)))
        for shape, one in first.items()
    }
