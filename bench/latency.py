"""Latency in an open loop: the engine beside dynamic batching on the same arrivals, at a share of capacity.

Capacity is what the bare model does at its best batch. Latency runs from an arrival's due time, and slowdown
is latency over the time of the same request alone on an idle engine. A dropped request is a miss.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.arms import Dynamic, Ended, Serve, continuous
from bench.bare import BarePrices
from bench.workload import GUIDANCE_SCALES, STEPS, DueRequest, mixed_requests, num_row_steps, poisson
from engine.load import LoadedModels
from engine.request import GenerationRequest

TIMEOUTS_SECONDS = (0.0, 0.1, 0.3)
MISSED = math.inf
SLOWDOWN_LIMIT = 3.0
SHARE_IN_TIME = 0.9


@dataclass(frozen=True)
class Solo:
    """Seconds of each (steps, guidance scale) alone on the engine."""

    seconds: dict[tuple[int, float], float]

    def of(self, request: GenerationRequest) -> float:
        """The request's own."""
        return self.seconds[request.num_inference_steps, request.guidance_scale]


def measure_solo(loaded: LoadedModels, side: int, repeats: int = 2) -> Solo:
    """Every class of the mix alone; the faster of `repeats`, so that slowdowns are not flattered."""
    (example,) = mixed_requests(1, side, seed=0)
    found: dict[tuple[int, float], float] = {}
    for steps in STEPS:
        for scale in GUIDANCE_SCALES:
            request = replace(example, num_inference_steps=steps, guidance_scale=scale)
            alone = [DueRequest(request, 0.0)]
            taken = [continuous(loaded, alone)[0].latency_seconds for _ in range(repeats)]
            found[steps, scale] = min(one for one in taken if one is not None)
    return Solo(found)


def capacity_of(prices: BarePrices, requests: Sequence[GenerationRequest]) -> float:
    """Images a second of the bare model on this work."""
    seconds = prices.seconds(
        num_row_steps=sum(map(num_row_steps, requests)), num_texts=len(requests), num_images=len(requests)
    )
    return len(requests) / seconds


def slowdowns(ended: Sequence[Ended], solo: Solo) -> list[float]:
    """Latency over solo time of every arrival, infinite where it was dropped."""
    return [
        MISSED if one.latency_seconds is None else one.latency_seconds / solo.of(one.arrival.request)
        for one in ended
    ]


def p95(values: Sequence[float]) -> float:
    """The 95th percentile, without interpolation."""
    return float(np.percentile(values, 95, method="higher"))


def best_dynamic(
    loaded: LoadedModels, arrivals: Sequence[DueRequest], max_rows: int, *, by_steps: bool
) -> Serve:
    """Dynamic batching at the time-out that gives it the lowest p95 on these arrivals."""
    found: dict[float, float] = {}
    for timeout in TIMEOUTS_SECONDS:
        arm = Dynamic(loaded, max_rows=max_rows, timeout_seconds=timeout, by_steps=by_steps)
        found[timeout] = p95([one.latency_seconds or MISSED for one in arm(arrivals)])
    timeout = min(found, key=found.__getitem__)
    return Dynamic(loaded, max_rows=max_rows, timeout_seconds=timeout, by_steps=by_steps)


def compare(
    loaded: LoadedModels, dynamic: Serve, solo: Solo, arrivals: Sequence[DueRequest]
) -> dict[str, tuple[float, float]]:
    """(dynamic, ours) of p95 latency and of p95 slowdown on the same arrivals."""
    theirs, ours = dynamic(arrivals), continuous(loaded, arrivals)
    return {
        "p95": tuple(p95([one.latency_seconds or MISSED for one in arm]) for arm in (theirs, ours)),  # type: ignore[dict-item]
        "slowdown": tuple(p95(slowdowns(arm, solo)) for arm in (theirs, ours)),  # type: ignore[dict-item]
    }


def goodput(
    serve: Serve,
    solo: Solo,
    capacity: float,
    *,
    side: int,
    seed: int,
    num_requests: int,
    shares: Sequence[float],
) -> float:
    """The highest of `shares` of capacity at which nine in ten end within three times their solo time.

    The shares are searched by halving, lowest first; 0 if not even the lowest is served in time.
    """
    requests = mixed_requests(num_requests, side, seed)

    def is_served(share: float) -> bool:
        ended = serve(poisson(requests, share * capacity, seed))
        in_time = [slowdown <= SLOWDOWN_LIMIT for slowdown in slowdowns(ended, solo)]
        return sum(in_time) >= SHARE_IN_TIME * len(in_time)

    return _last_that_holds(shares, is_served)


def with_deadlines(loaded: LoadedModels, solo: Solo) -> Serve:
    """The engine, told what each request may take: three times its solo time."""

    def serve(arrivals: Sequence[DueRequest]) -> list[Ended]:
        return continuous(
            loaded,
            [
                replace(one, request=replace(one.request, seconds_left=SLOWDOWN_LIMIT * solo.of(one.request)))
                for one in arrivals
            ],
        )

    return serve


def _last_that_holds(shares: Sequence[float], holds: Callable[[float], bool]) -> float:
    low, high = -1, len(shares)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(shares[middle]) else (low, middle)
    return shares[low] if low >= 0 else 0.0
