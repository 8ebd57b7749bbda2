"""Batches of requests that one call of a pipeline can draw: those with equal steps, guidance scale and size.

It knows no model and no queue, and imports the standard library alone: servers of other projects use it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_ROWS = 16
"""Rows of a forward pass; with guidance an image has two. More are not faster on a core of a CPU."""
MUST_MATCH = ("num_inference_steps", "guidance_scale", "width", "height")


def batches_of(
    requests: Sequence[Mapping[str, Any]], max_rows: int = MAX_ROWS
) -> Iterator[list[Mapping[str, Any]]]:
    """Yield batches of requests with equal steps, scale and size, of at most so many rows each."""
    for places in places_of(requests, max_rows):
        yield [requests[place] for place in places]


def places_of(requests: Sequence[Mapping[str, Any]], max_rows: int = MAX_ROWS) -> Iterator[list[int]]:
    """Yield the same batches as places in `requests`."""
    equal: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, one in enumerate(requests):
        equal[tuple(one[name] for name in MUST_MATCH)].append(place)
    for (_, scale, *_), places in equal.items():
        size = max(1, max_rows // 2) if scale > 1 else max_rows
        for start in range(0, len(places), size):
            yield places[start : start + size]
