"""The phases of the comparison: the bare pipeline, capacity, settings, arms in turns under a load, a kill.

The bare pipeline's images are what every service must draw, and its time alone is the unit of a slowdown.
Each phase starts the services that it needs and records its runs. It makes no figures.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.latency import Solo
from bench.peers.drawing import Drawing, Request
from bench.peers.load import Load, Run, at_once, balanced_requests, due, joined
from bench.peers.peer import OURS, PEERS, Peer, Settings, our_service, started, why_absent
from bench.peers.service import Service, awake
from bench.plane.pipeline import pipelines
from bench.workload import GUIDANCE_SCALES, STEPS, mixed_requests
from engine.request import GenerationRequest

SIDE = 128
LOADS = (0.5, 0.7, 0.85)
"""Shares of the best peer's capacity."""
JUDGED_LOAD = 0.7
KILL_LOAD = 0.5
KILL_ANSWER_SECONDS = 60.0
_FIELDS = ("prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed")
TUNING_SEED, WARMING_SEED, KILL_SEED = 101, 102, 103
OTHER_SEEDS = (TUNING_SEED, KILL_SEED)
"""Of traces beside those of the load; the images that warm a service are not compared."""


@dataclass(frozen=True)
class Amounts:
    """Requests of each part; `per_batch` at saturation is how often a batch of every worker is filled."""

    num_saturated_least: int = 40
    num_saturated_most: int = 120
    num_tuning: int = 60
    num_due: int = 60
    num_kill: int = 60
    num_peers: int = 2
    seeds: Sequence[int] = (1, 2)
    loads: Sequence[float] = LOADS
    sizes: Sequence[int] = (1, 4, 8, 16, 32)
    solo_repeats: int = 3
    sweeps_waits: bool = True

    def sizes_of(self, peer: Peer) -> Sequence[int]:
        """The batch sizes that are tried of a peer; its first one if it has none of ours."""
        return [size for size in peer.sizes if size in self.sizes] or peer.sizes[:1]


WHOLE = Amounts()
SHORT = Amounts(
    num_saturated_least=6,
    num_saturated_most=8,
    num_tuning=6,
    num_due=8,
    num_kill=8,
    seeds=(1,),
    loads=(JUDGED_LOAD,),
    sizes=(8,),
    solo_repeats=1,
    sweeps_waits=False,
)
Cost = Callable[[Run], tuple[float, ...]]
"""What a setting is chosen by: the least is best."""


@dataclass
class Comparison:
    """All runs so far, which settings were chosen for what, and what was left out and why."""

    load: Load
    solo: Solo
    amounts: Amounts
    packages: Path
    folder: Path
    say: Callable[[str], None] = field(default=partial(print, flush=True))
    runs: list[Run] = field(default_factory=list)
    chosen: dict[str, dict[str, Settings]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    _num_started: int = 0

    def peers(self) -> list[Peer]:
        """Those that are installed and have not failed."""
        for peer in PEERS:
            if reason := why_absent(peer, self.packages):
                self.leave_out(peer.name, reason)
        return [peer for peer in PEERS if peer.name not in self.left_out]

    def leave_out(self, name: str, reason: str) -> None:
        """Go on without a peer."""
        if name not in self.left_out:
            self.left_out[name] = reason
            self.say(f"  {name} is left out: {reason}")

    def record(self, run: Run) -> Run:
        """Keep a run, and say what it found."""
        self.runs.append(run)
        parts = [f"{run.throughput:.2f} images/s, p95 {run.p95_seconds:.2f} s"]
        parts += [f"in time {run.in_time(self.solo):.2f}", f"{run.num_lost} lost"]
        self.say(f"    {run.phase}: {run.arm} ({_listed(run.settings)}): {', '.join(parts)}")
        return run

    def new_folder(self) -> Path:
        """A folder for a service; short, since Ray puts sockets into it."""
        self._num_started += 1
        return self.folder / str(self._num_started)

    def of(self, phase: str, arm: str) -> list[Run]:
        """The runs of an arm in a phase."""
        return [run for run in self.runs if run.phase == phase and run.arm == arm]


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


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


def attempted(
    comparison: Comparison, peer: Peer, settings: Settings, use: Callable[[Service], Run]
) -> Run | None:
    """Start a peer and use it; a peer that does not start, or draws something else, is left out."""
    try:
        with started(peer, settings, comparison.packages, comparison.new_folder()) as service:
            return comparison.record(use(service))
    except RuntimeError as error:
        comparison.leave_out(peer.name, str(error))
        return None


def measure_capacities(comparison: Comparison) -> dict[str, float]:
    """Images a second at saturation of every peer, at the best of its batch sizes, and of ours."""
    amounts, found = comparison.amounts, {}
    for peer in comparison.peers():
        runs: dict[Settings, Run] = {}
        for size in amounts.sizes_of(peer):
            settings = Settings(size, peer.saturated_wait_seconds)
            use = partial(_saturate, comparison, num_saturating(size, amounts))
            if (run := attempted(comparison, peer, settings, use)) is None:
                break
            runs[settings] = run
        if runs and peer.name not in comparison.left_out:
            settings = best_settings(runs, lambda run: (-run.throughput,))
            comparison.chosen.setdefault(peer.name, {})["capacity"] = settings
            found[peer.name] = runs[settings].throughput
    with our_service(comparison.new_folder()) as service:
        num = amounts.num_saturated_most
        found[OURS] = comparison.record(_saturate(comparison, num, service)).throughput
    return found


def num_saturating(size: int, amounts: Amounts) -> int:
    """Requests at saturation: two batches for each of two workers at least; whole decks of the mix."""
    decks = -(-4 * size // amounts.num_saturated_least)
    return min(amounts.num_saturated_most, max(1, decks) * amounts.num_saturated_least)


def _saturate(comparison: Comparison, num: int, service: Service) -> Run:
    return comparison.load.run(service, at_once(balanced_requests(num, SIDE, 1)), "capacity")


def best_settings(tried: Mapping[Settings, Run], cost: Cost) -> Settings:
    """Return the settings whose run cost least; of equal ones the first."""
    return min(tried, key=lambda settings: cost(tried[settings]))


def tune(comparison: Comparison, peer: Peer, rate: float, costs: Mapping[str, Cost]) -> None:
    """Choose the settings of a peer for each of these costs, on one tuning trace at this rate.

    Every batch size at the middle wait comes first, but those with which it cannot keep up at this rate; then
    the other waits, at the sizes that were best.
    """
    amounts = comparison.amounts
    arrivals = due(amounts.num_tuning, rate, side=SIDE, seed=TUNING_SEED)
    tried: dict[Settings, Run] = {}

    def attempt(settings: Settings) -> None:
        def use(service: Service) -> Run:
            return comparison.load.run(service, arrivals, "tuning", rate=rate)

        if settings not in tried and peer.name not in comparison.left_out:
            run = attempted(comparison, peer, settings, use)
            if run is not None:
                tried[settings] = run

    waits = sorted(peer.waits_seconds)
    middle = waits[len(waits) // 2]
    for size in sizes_that_keep_up(comparison.of("capacity", peer.name), rate):
        attempt(Settings(size, middle))
    for size in {best_settings(tried, cost).max_batch for cost in costs.values()} if tried else ():
        for wait in waits if size > 1 and amounts.sweeps_waits else ():
            attempt(Settings(size, wait))
    for name, cost in costs.items():
        if tried:
            comparison.chosen.setdefault(peer.name, {})[name] = best_settings(tried, cost)


def sizes_that_keep_up(saturated: Sequence[Run], rate: float) -> list[int]:
    """The batch sizes of these runs that made at least this rate; the best one if none did."""
    fastest = max(saturated, key=lambda run: run.throughput)
    kept = [run for run in saturated if run.throughput >= rate] or [fastest]
    return [run.settings["max_batch"] for run in kept]


def measure_in_turns(comparison: Comparison, peers: Sequence[Peer], capacity: float) -> None:
    """The chosen settings of these peers and ours under one trace at each load, in turns.

    All services are up, and all but one are stopped (`SIGSTOP`). The order is reversed with each seed.
    """
    amounts = comparison.amounts
    warming = balanced_requests(4, SIDE, WARMING_SEED)
    with ExitStack() as stack:
        services = [stack.enter_context(our_service(comparison.new_folder()))]
        services[0].suspend()
        for peer in (one for one in peers if one.name not in comparison.left_out):
            for settings in sorted(set(_judged(comparison, peer)), key=str):
                try:
                    service = stack.enter_context(
                        started(peer, settings, comparison.packages, comparison.new_folder())
                    )
                except RuntimeError as error:
                    comparison.leave_out(peer.name, str(error))
                    break
                services.append(service)
                service.suspend()
        for number, seed in enumerate(amounts.seeds):
            for share in amounts.loads:
                arrivals = due(amounts.num_due, share * capacity, side=SIDE, seed=seed)
                for service in reversed(services) if number % 2 else services:
                    with awake(service, warming):
                        run = comparison.load.run(service, arrivals, phase_of(share), rate=share * capacity)
                    comparison.record(run)
        for service in services:
            service.resume()  # so that it can end


def _judged(comparison: Comparison, peer: Peer) -> Iterator[Settings]:
    yield from (settings for name, settings in comparison.chosen[peer.name].items() if name != "capacity")


def phase_of(share: float) -> str:
    """The name of the phase at this share of the best peer's capacity."""
    return f"{100 * share:.0f} %"


def pooled(comparison: Comparison, arm: str, share: float) -> list[Run]:
    """The runs of all seeds of an arm at a load, as one run for each of its settings."""
    by_settings: dict[str, list[Run]] = {}
    for run in comparison.of(phase_of(share), arm):
        by_settings.setdefault(_listed(run.settings), []).append(run)
    return [joined(runs) for runs in by_settings.values()]


def measure_kills(comparison: Comparison, capacity: float) -> None:
    """Kill one worker of each service in the middle of a load, and wait for what still comes."""
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

    for peer in comparison.peers():
        chosen = comparison.chosen[peer.name]
        attempted(comparison, peer, chosen.get("p95", chosen["capacity"]), use)
    with our_service(comparison.new_folder()) as service:
        comparison.record(use(service))
