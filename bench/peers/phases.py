"""The phases of the comparison: the bare pipeline, batch sizes, capacity, settings, arms in turns, a kill.

The bare pipeline's images are what every service must draw, and its time alone is the unit of a slowdown.
Each phase records its runs. It makes no figures.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from bench.latency import Solo, with_deadline
from bench.peers.arms import Arm, Arms, Use, attempted
from bench.peers.comparison import JUDGED_LOAD, SIDE, Comparison, phase_of
from bench.peers.drawing import Drawing, Request
from bench.peers.load import Run, at_once, balanced_requests, due
from bench.peers.peer import OURS, Peer, Settings
from bench.peers.service import Service
from bench.plane.pipeline import pipelines
from bench.workload import GUIDANCE_SCALES, STEPS, DueRequest, mixed_requests
from engine.request import GenerationRequest

SATURATION_SEED, TUNING_SEED, KILL_SEED = 1, 101, 103
SEEDS = (SATURATION_SEED, TUNING_SEED, KILL_SEED)
"""Of all traces but those of the load and the warm-up."""
WARM_UP_SHARE = 0.2
"""Of a trace in an open loop: it finds empty queues, and its latencies do not count."""
KILL_LOAD = 0.5
KILL_ANSWER_SECONDS = 30.0
DEADLINES = {"settings": "with deadlines"}
"""Each request of such a run tells us when it is late, as a peer is told how long a request may take."""
SATURATED_ANSWER_SECONDS = 600.0
CLEARLY_SLOWER = 0.9
"""A batch size that makes less than this share of the best one ends the search among smaller ones."""
CANNOT_WIN = 0.75
"""A peer that makes less than this share of the best peer at its largest size is tried at no other one."""
_FIELDS = ("prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed")
Cost = Callable[[Run], tuple[float, ...]]
"""What a setting is chosen by: the least is best."""


def references_of(requests: Sequence[GenerationRequest]) -> dict[GenerationRequest, bytes]:
    """Draw each request alone; return its PNG file."""
    drawing = Drawing()
    return {request: drawing.draw([_fields(request)])[0] for request in requests}


def solo_of(side: int, repeats: int) -> Solo:
    """Seconds of each class alone, PNG file included: the fastest of `repeats`."""
    drawing = Drawing()
    (example,) = mixed_requests(1, side, seed=0)
    drawing.draw([_fields(replace(example, num_inference_steps=4))])  # the first one warms up
    seconds: dict[tuple[int, float], float] = {}
    for _ in range(repeats):
        for steps in STEPS:
            for scale in GUIDANCE_SCALES:
                request = _fields(replace(example, num_inference_steps=steps, guidance_scale=scale))
                begun_at = time.monotonic()
                drawing.draw([request])
                taken = time.monotonic() - begun_at
                seconds[steps, scale] = min(taken, seconds.get((steps, scale), taken))
    return Solo(seconds)


def bare_rate(requests: Sequence[GenerationRequest], cores: Sequence[int]) -> float:
    """Images a second of plain diffusers on these cores, in batches of equal requests of at most 16 rows."""
    with pipelines(cores) as plain:
        plain.batches(requests[: len(cores)])
        begun_at = time.monotonic()
        plain.batches(requests)
        return len(requests) / (time.monotonic() - begun_at)


def _fields(request: GenerationRequest) -> Request:
    return {name: getattr(request, name) for name in _FIELDS}


def choose_size(comparison: Comparison, peer: Peer) -> None:
    """Choose the batch size of a peer with the most images a second; leave the peer out if none works.

    Short runs, from the largest size down, until one is clearly slower: smaller ones share less of a call.
    """
    sizes = comparison.amounts.sizes_of(peer)
    settings = [Settings(size, peer.saturated_wait_seconds) for size in sizes]
    if len(settings) == 1:
        comparison.choose(peer, "capacity", settings[0])
        return
    use = partial(_saturate, comparison, comparison.amounts.num_sizing, "sizes")
    made = max((run.throughput for run in comparison.runs if run.phase == "sizes"), default=0.0)
    runs: dict[Settings, Run] = {}
    for each in settings:
        if (run := attempted(comparison, peer, each, use)) is None:
            continue
        runs[each] = run
        own = max(one.throughput for one in runs.values())
        if run.throughput < max(CLEARLY_SLOWER * own, CANNOT_WIN * made):
            break
    if runs:
        comparison.choose(peer, "capacity", best_settings(runs, lambda run: (-run.throughput,)))
    else:
        comparison.leave_out_as_dropped(peer)


def start_all(comparison: Comparison, arms: Arms) -> None:
    """Start ours, and every peer at the batch size with the most images a second."""
    arms.add_ours()
    for peer in comparison.peers():
        arms.add(peer, comparison.chosen[peer.name]["capacity"])
        if not any(arm.name == peer.name for arm in arms.up):
            comparison.leave_out_as_dropped(peer)


def measure_capacities(comparison: Comparison, arms: Arms) -> dict[str, float]:
    """Images a second at saturation; the best peers and ours have a second round, in reversed order."""
    use = partial(_saturate, comparison, comparison.amounts.num_saturated, "capacity")
    for arm in arms.up:
        arms.run(arm, use)
    best = best_peers(_capacities(comparison, arms), comparison.amounts.num_peers)
    for arm in reversed(arms.up):
        if arm.name in (OURS, *best):
            arms.run(arm, use)
    return _capacities(comparison, arms)


def _capacities(comparison: Comparison, arms: Arms) -> dict[str, float]:
    return {
        arm.name: statistics.fmean(run.throughput for run in comparison.of("capacity", arm.name))
        for arm in arms.up
    }


def best_peers(capacities: Mapping[str, float], num: int) -> Sequence[str]:
    """The names of the peers with the highest capacity."""
    return sorted((name for name in capacities if name != OURS), key=lambda name: -capacities[name])[:num]


def _saturate(comparison: Comparison, num: int, phase: str, service: Service) -> Run:
    arrivals = at_once(balanced_requests(num, SIDE, SATURATION_SEED))
    return comparison.load.run(service, arrivals, phase, answer_seconds=SATURATED_ANSWER_SECONDS)


def best_settings(tried: Mapping[Settings, Run], cost: Cost) -> Settings:
    """Return the settings whose run cost least; of equal ones the first."""
    return min(tried, key=lambda settings: cost(tried[settings]))


def tune(comparison: Comparison, peer: Peer, rate: float, costs: Mapping[str, Cost]) -> None:
    """Choose the settings of a peer for each of these costs, on one tuning trace at this rate.

    Every batch size at the middle wait comes first, from the largest down, until one is best by no cost; then
    the shorter wait at the sizes that were best, and the longer one where the shorter is best by no cost.
    """
    arrivals = due(comparison.amounts.num_tuning, rate, side=SIDE, seed=TUNING_SEED)
    use = partial(_serve, comparison, arrivals, "tuning", rate)
    tried: dict[Settings, Run] = {}

    def is_best(settings: Settings) -> bool:
        """Try these settings; whether they are now the best by some cost."""
        if settings not in tried and (run := attempted(comparison, peer, settings, use)) is not None:
            tried[settings] = run
        return any(best_settings(tried, cost) == settings for cost in costs.values()) if tried else False

    shorter, middle, longer = _waits(peer)
    for size in sizes_that_keep_up(comparison, peer, rate):
        if not is_best(Settings(size, middle)) and tried:
            break
    best = {best_settings(tried, cost).max_batch for cost in costs.values()} if tried else set()
    for size in best if comparison.amounts.sweeps_waits else ():
        if size > 1 and not is_best(Settings(size, shorter)):
            is_best(Settings(size, longer))
    for name, cost in costs.items():
        if tried:
            comparison.choose(peer, name, best_settings(tried, cost))


def _waits(peer: Peer) -> tuple[float, float, float]:
    waits = sorted(peer.waits_seconds)
    return waits[0], waits[len(waits) // 2], waits[-1]


def sizes_that_keep_up(comparison: Comparison, peer: Peer, rate: float) -> list[int]:
    """The batch sizes of a peer, but those that made less than this rate; its best one if all did."""
    made = {run.settings["max_batch"]: run.throughput for run in comparison.of("sizes", peer.name)}
    kept = [size for size in comparison.amounts.sizes_of(peer) if made.get(size, rate) >= rate]
    return kept or [comparison.chosen[peer.name]["capacity"].max_batch]


def _serve(
    comparison: Comparison, arrivals: Sequence[DueRequest], phase: str, rate: float, service: Service
) -> Run:
    num_warm_up = int(WARM_UP_SHARE * len(arrivals))
    return comparison.load.run(service, arrivals, phase, rate=rate, num_warm_up=num_warm_up)


def _serve_in_time(
    comparison: Comparison, arrivals: Sequence[DueRequest], phase: str, rate: float, service: Service
) -> Run:
    told = [with_deadline(one, comparison.solo) for one in arrivals]
    return _serve(comparison, told, phase, rate, replace(service, settings=DEADLINES))


def measure_loads(
    comparison: Comparison, arms: Arms, tuned: Sequence[str], capacities: Mapping[str, float]
) -> None:
    """All arms under one trace at each load, in turns, in reversed order with each further seed.

    Further seeds are of the judged load, ours and the tuned peers alone. At the other loads, a peer that is
    not tuned runs only if it can keep up: else its latencies would say how long the trace is. Ours has each
    trace twice, as shipped and with deadlines.
    """
    best = max(rate for name, rate in capacities.items() if name != OURS)
    amounts = comparison.amounts
    for number, seed in enumerate(amounts.seeds):
        for share in (JUDGED_LOAD,) if number else amounts.loads:
            rate = share * best
            arrivals = due(amounts.num_due, rate, side=SIDE, seed=seed)
            use = partial(_serve, comparison, arrivals, phase_of(share), rate)
            in_time = partial(_serve_in_time, comparison, arrivals, phase_of(share), rate)
            runs: list[tuple[Arm, Use]] = []
            for arm in judged_arms(comparison, arms):
                if arm.name in (OURS, *tuned) or (
                    number == 0 and (share == JUDGED_LOAD or capacities[arm.name] >= rate)
                ):
                    runs += [(arm, use), (arm, in_time)] if arm.name == OURS else [(arm, use)]
            for arm, each in reversed(runs) if number % 2 else runs:
                arms.run(arm, each)


def judged_arms(comparison: Comparison, arms: Arms) -> list[Arm]:
    """Ours, the tuned arms of each tuned peer, and of every other peer the one of its capacity."""
    tuned = {
        name: {settings for what, settings in each.items() if what != "capacity"}
        for name, each in comparison.chosen.items()
    }
    up = {(arm.name, arm.settings) for arm in arms.up}
    wanted = {name for name, each in tuned.items() if any((name, one) in up for one in each)}
    return [arm for arm in arms.up if arm.name not in wanted or arm.settings in tuned[arm.name]]


def measure_kills(comparison: Comparison, arms: Arms, capacity: float) -> None:
    """Kill one worker of each service in the middle of a load, and wait for what still comes.

    Ours is the last one: its supervisor is this process, and starts a worker that would not be stopped.
    """
    amounts, rate = comparison.amounts, KILL_LOAD * capacity
    arrivals = due(amounts.num_kill, rate, side=SIDE, seed=KILL_SEED)

    def use(service: Service) -> Run:
        return comparison.load.run(
            service,
            arrivals,
            "kill",
            rate=rate,
            at={len(arrivals) // 2: service.kill_worker},
            answer_seconds=KILL_ANSWER_SECONDS,
        )

    measured = sorted(judged_arms(comparison, arms), key=lambda arm: arm.name == OURS)
    for arm in measured:
        chosen = comparison.chosen.get(arm.name, {})
        one_of_it = [each for each in measured if each.name == arm.name]
        if len(one_of_it) == 1 or arm.settings == chosen.get("p95"):
            arms.run(arm, use)
