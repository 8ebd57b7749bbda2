"""Measures latency in an open loop: the engine and dynamic batching on the same arrivals.

Capacity is the throughput of the bare model at its best batch size. Latency runs from an arrival's scheduled
time; slowdown is latency ÷ the time of the same request alone on an idle engine. A dropped request is a miss.
The strategies take turns.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from bench.bare import BarePrices
from bench.clock import Part, WorkClock, in_turns
from bench.strategies import Dynamic, Ended, Serve
from bench.workload import (
    GUIDANCE_SCALES,
    STEPS,
    DueRequest,
    mixed_requests,
    num_row_steps,
    num_texts,
    poisson,
)
from engine.loading.load import LoadedModels
from engine.request import GenerationRequest

TIMEOUTS_SECONDS = (0.0, 0.1, 0.3)
MISSED = math.inf
SLOWDOWN_LIMIT = 3.0
SHARE_IN_TIME = 0.9


@dataclass(frozen=True)
class Solo:
    """The seconds of each (steps, guidance scale) alone on the engine."""

    seconds: dict[tuple[int, float], float]

    def of(self, request: GenerationRequest) -> float:
        """Return the solo seconds of the request."""
        return self.seconds[request.num_inference_steps, request.guidance_scale]


def measure_solo(ours: Serve, side: int, repeats: int) -> Solo:
    """Measure every class of the mix alone, the fastest of `repeats`, so as not to understate slowdowns."""
    (example,) = mixed_requests(1, side, seed=0)
    classes = [(steps, scale) for steps in STEPS for scale in GUIDANCE_SCALES]
    requests = [replace(example, num_inference_steps=steps, guidance_scale=scale) for steps, scale in classes]
    alone = [partial(_all, ours, [DueRequest(request, 0.0)]) for request in requests * repeats]
    taken = [one.latency_seconds or MISSED for (one,) in in_turns(alone)]
    return Solo({each: min(taken[index :: len(classes)]) for index, each in enumerate(classes)})


def serve_in_turns(strategies: Sequence[Serve], arrivals: Sequence[DueRequest]) -> list[list[Ended]]:
    """The outcome of the arrivals under each strategy."""
    return in_turns([partial(_all, strategy, arrivals) for strategy in strategies])


def _all(
    serve: Serve, arrivals: Sequence[DueRequest], clock: WorkClock
) -> Generator[None, None, list[Ended]]:
    found: list[Ended] = []
    for ended in serve(arrivals, clock):
        found += ended
        yield
    return found


def capacity_of(prices: BarePrices, requests: Sequence[GenerationRequest]) -> float:
    """Return the images a second of the bare model on this work."""
    seconds = prices.seconds(
        num_row_steps=sum(map(num_row_steps, requests)),
        num_texts=sum(map(num_texts, requests)),
        num_images=len(requests),
    )
    return len(requests) / seconds


def slowdowns(ended: Sequence[Ended], solo: Solo) -> list[float]:
    """Return latency ÷ solo time of every arrival; infinite if it was dropped."""
    return [
        MISSED if one.latency_seconds is None else one.latency_seconds / solo.of(one.arrival.request)
        for one in ended
    ]


def p95(values: Sequence[float]) -> float:
    """The 95th percentile, without interpolation."""
    return float(np.percentile(values, 95, method="higher"))


def p95_latency(ended: Sequence[Ended]) -> float:
    """Seconds."""
    return p95([MISSED if one.latency_seconds is None else one.latency_seconds for one in ended])


def share_missed(ended: Sequence[Ended], solo: Solo) -> float:
    """The share that took longer than three times its solo time."""
    return sum(slowdown > SLOWDOWN_LIMIT for slowdown in slowdowns(ended, solo)) / len(ended)


def best_dynamic(
    loaded: LoadedModels,
    arrivals: Sequence[DueRequest],
    max_rows: int,
    cost: Callable[[Sequence[Ended]], float] = p95_latency,
) -> Dynamic:
    """Return dynamic batching keyed by step count, at its best time-out for these arrivals."""
    strategies = [
        Dynamic(loaded, max_rows=max_rows, timeout_seconds=timeout, by_steps=True)
        for timeout in TIMEOUTS_SECONDS
    ]
    costs = [cost(ended) for ended in serve_in_turns(strategies, arrivals)]
    return strategies[costs.index(min(costs))]


def goodput(
    serve: Serve,
    solo: Solo,
    capacity: float,
    *,
    side: int,
    seed: int,
    num_requests: int,
    shares: Sequence[float],
) -> Part[float]:
    """Return the highest of `shares` of capacity at which 90 % end within three times their solo time.

    The search is binary; the result is 0 if not even the lowest share is served in time.
    """
    requests = mixed_requests(num_requests, side, seed)

    def search(clock: WorkClock) -> Generator[None, None, float]:
        low, high = -1, len(shares)
        while high - low > 1:
            middle = (low + high) // 2
            arrivals = poisson(requests, shares[middle] * capacity, seed)
            is_served = yield from _is_in_time(serve(arrivals, clock), num_requests, solo)
            low, high = (middle, high) if is_served else (low, middle)
        return shares[low] if low >= 0 else 0.0

    return search


def _is_in_time(
    served: Iterator[Sequence[Ended]], num_requests: int, solo: Solo
) -> Generator[None, None, bool]:
    """Whether 90 % are in time; it stops as soon as the answer is known."""
    num_wanted = math.ceil(SHARE_IN_TIME * num_requests - 1e-9)  # 0.9 * 80 may come out above 72
    num_hit = num_missed = 0
    for ended in served:
        in_time = [slowdown <= SLOWDOWN_LIMIT for slowdown in slowdowns(ended, solo)]
        num_hit += sum(in_time)
        num_missed += len(in_time) - sum(in_time)
        if num_hit >= num_wanted or num_missed > num_requests - num_wanted:
            break
        yield
    return num_hit >= num_wanted


def with_deadlines(serve: Serve, solo: Solo) -> Serve:
    """Return the strategy with a deadline for each request: three times its solo time."""

    def serve_in_time(arrivals: Sequence[DueRequest], clock: WorkClock) -> Iterator[Sequence[Ended]]:
        return serve([with_deadline(one, solo) for one in arrivals], clock)

    return serve_in_time


def with_deadline(arrival: DueRequest, solo: Solo) -> DueRequest:
    """The arrival with a deadline: three times its solo time."""
    seconds = SLOWDOWN_LIMIT * solo.of(arrival.request)
    return replace(arrival, request=replace(arrival.request, seconds_left=seconds))
