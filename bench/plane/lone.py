"""One job on an idle service: how much longer `Prefer: wait` takes than plain diffusers at the same bucket.

Requests of both kinds take turns, a job and the same request on plain diffusers, by the wall clock.
"""

import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic

from bench.figures import Figure, figure_of
from bench.plane.load import Connection, body_of
from bench.plane.pipeline import pipelines
from bench.plane.system import plane_system
from bench.workload import mixed_requests
from engine.request import GenerationRequest

SIDE = 128
CLASSES = {"lone_overhead_ms_4": (4, 1.0), "lone_overhead_ms_20": (20, 4.0)}
"""Steps and guidance scale of the requests of each figure."""
MAX_OVERHEAD_MS = 30.0
NUM_REQUESTS, NUM_SHORT, NUM_WARMING = 24, 3, 2
STAGES = ("queued", "waiting", "encoding", "denoising", "decoding", "file", "upload")


def measure(*, is_short: bool) -> Iterator[Figure]:
    """The median of a lone job's answer less that of the bare request."""
    num = NUM_SHORT if is_short else NUM_REQUESTS
    core = min(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory() as folder,
        plane_system(Path(folder)) as plane,
        pipelines([core]) as plain,
    ):
        client = Connection(plane.url, plane.api_key)
        requests = mixed_requests(num + NUM_WARMING, SIDE, seed=1)
        ours: dict[str, list[float]] = {name: [] for name in CLASSES}
        bare: dict[str, list[float]] = {name: [] for name in CLASSES}
        stages: dict[str, list[dict[str, float]]] = {name: [] for name in CLASSES}
        for number, request in enumerate(requests):
            for name, one in _of_each_class(request):
                begun_at = monotonic()
                job = client.draw(body_of(one))
                taken = monotonic() - begun_at
                alone = plain.alone(one).wall
                if number >= NUM_WARMING:
                    ours[name].append(1000 * taken)
                    bare[name].append(1000 * alone)
                    stages[name].append(job["timings"])
        client.close()
    for name in CLASSES:
        yield figure_of_class(name, ours[name], bare[name], stages[name])


def _of_each_class(request: GenerationRequest) -> Iterator[tuple[str, GenerationRequest]]:
    for name, (steps, scale) in CLASSES.items():
        yield name, replace(request, num_inference_steps=steps, guidance_scale=scale)


def figure_of_class(
    name: str, ours: Sequence[float], bare: Sequence[float], stages: Sequence[dict[str, float]]
) -> Figure:
    """The figure of these milliseconds; the value is the difference of the medians."""
    found = statistics.median(ours), statistics.median(bare)
    parts = ", ".join(
        f"{stage} {1000 * statistics.median(one[f'{stage}_seconds'] for one in stages):.1f}"
        for stage in STAGES
    )
    return figure_of(
        name,
        [one - other for one, other in zip(ours, bare, strict=True)],
        MAX_OVERHEAD_MS,
        0.0,
        f"p50 {found[0]:.0f} ms, plain diffusers {found[1]:.0f} ms; of ours: {parts}",
        value=found[0] - found[1],
        is_at_most=True,
    )
