"""Runs against a service: what it serves by default, one run of a trace, and a search for its highest rate.

It knows HTTP alone: no row, no message, no process.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.load.arrivals import Instants, ramp
from bench.load.connection import LOST, Connection, Place
from bench.load.jobs import JobRoute
from bench.load.mix import Mix, Weighted, only
from bench.load.outcomes import Outcome
from bench.load.search import Found, search
from bench.load.send import Route, send
from bench.load.summary import Goal, Summary, summarise
from bench.load.trace import Form, Trace, drawn_at
from bench.load.uploads import upload
from bench.load.utilisation import Use, watched
from catalogue.determinism import weakest

USUAL_LOAD = 0.7
"""The rate of a run that names none, as a share of what the workers do one image at a time."""

Pattern = Callable[[float, float, random.Random], Instants]


class ServiceError(RuntimeError):
    """The service cannot be measured; the message says why."""

    code = "not_measurable"
    retryable = True


class NoAnswerError(ServiceError):
    """Nothing answers at its address."""

    code = "no_answer"


@dataclass(frozen=True)
class Served:
    """A model of a service with its defaults, the live workers of its tiers, and their weakest level.

    The API tells how many workers serve a tier, and not which: `num_workers` are those of the tier that has
    most. There are more if some serve other tiers alone; they are counted once they have drawn something.
    """

    model: str
    size: tuple[int, int]
    num_inference_steps: int
    guidance_scale: float
    num_workers: int
    determinism: str | None


def look(connection: Connection, model: str | None = None) -> Served:
    """What the service draws by default. Raises `ServiceError`."""
    known = {one["name"]: one for one in _get(connection, "/v1/models")["models"]}
    if model is not None and model not in known:
        raise ServiceError(f"there is no model {model!r}; there is: {', '.join(known)}")
    chosen = known[model] if model else next(one for one in known.values() if one["default"])
    tiers = [one for one in _get(connection, "/v1/tiers")["tiers"] if one["model"] == chosen["name"]]
    if not any(one["can_serve"] for one in tiers):
        raise ServiceError(f"no live worker serves the model {chosen['name']}")
    return Served(
        chosen["name"],
        (tiers[0]["default_width"], tiers[0]["default_height"]),
        chosen["default_num_inference_steps"],
        chosen["default_guidance_scale"],
        max(one["num_live_workers"] for one in tiers),
        weakest(levels) if (levels := [one["determinism"] for one in tiers if one["determinism"]]) else None,
    )


def _get(connection: Connection, path: str) -> dict[str, Any]:
    try:
        answer = connection.ask("GET", path)
    except LOST as error:
        raise NoAnswerError(f"GET {path} is not answered: {error or type(error).__name__}") from error
    if answer.status != 200:
        raise ServiceError(f"GET {path}: {answer.status} {answer.refusal}")
    return answer.document


def usual_mix(served: Served, shares: Mapping[str, Weighted[Any]], **others: Any) -> Mix:
    """The shares that are given, and the service's defaults for the rest."""
    usual: dict[str, Any] = {
        "sizes": only(served.size),
        "steps": only(served.num_inference_steps),
        "guidance_scales": only(served.guidance_scale),
    }
    return Mix(**{**usual, **shares}, **others)


def usual_rate(served: Served, alone: Mapping[str, float], mix: Mix) -> float:
    """The images a second of a run that names no rate: most of what workers do without step batches."""
    seconds = sum(alone.values()) / len(alone) / mix.nums_images.mean(float)
    return USUAL_LOAD * served.num_workers / seconds


@dataclass(frozen=True)
class Load:
    """What is offered at any rate: a mix, a pattern of arrivals, and for how long."""

    mix: Mix
    pattern: Pattern
    pattern_name: str
    seconds: float
    warm_up_seconds: float
    seed: int

    def at(self, images_per_second: float) -> Trace:
        """The trace at this rate; the same seed gives the same requests in the same order."""
        rng, rate = random.Random(f"arrivals {self.seed}"), images_per_second / self.mix.images_per_arrival
        # Two parts, so that the one that counts has exactly the rate. A ramp is its own warm-up.
        before = self.pattern(rate, self.warm_up_seconds, rng) if self.pattern is not ramp else []
        instants = before + [self.warm_up_seconds + one for one in self.pattern(rate, self.seconds, rng)]
        # A generator of their own, so that requests do not depend on how many arrivals there are.
        requests = random.Random(f"requests {self.seed}")
        return drawn_at(
            instants,
            lambda: self.mix.draw(requests),
            seconds=self.warm_up_seconds + self.seconds,
            warm_up_seconds=self.warm_up_seconds,
            drawn={
                "images_per_second": images_per_second,
                "arrivals": self.pattern_name,
                "seed": self.seed,
                **self.mix.described(),
            },
        )


@dataclass(frozen=True)
class Run:
    """One run: what was offered, what became of it, its figures, and what it took of the machine."""

    rate: float
    trace: Trace
    outcomes: Sequence[Outcome]
    summary: Summary
    use: Use

    @property
    def name(self) -> str:
        """For tables, plots and files."""
        return f"{self.rate:.3g} images/s"

    def in_short(self) -> str:
        """A line about the run."""
        one, latency = self.summary, self.summary.latency
        good = "" if one.in_goal_share is None else f", {one.in_goal_share:.1%} in goal"
        return (
            f"{self.name} offered: {one.images_per_second:.3g} images/s, p50 {latency.p50:.3g} s, "
            f"p95 {latency.p95:.3g} s, {one.error_rate:.1%} missed{good}"
        )


@dataclass(frozen=True)
class Bench:
    """Where to send, what is good, how long to wait for what a run leaves, and whose metrics to read."""

    place: Place
    goal: Goal
    num_workers: int
    drain_seconds: float
    metrics_urls: Sequence[str] = ()

    def run(self, trace: Trace) -> Run:
        """Send the trace and sum it up."""
        trust = self.place.trust()
        routes: Mapping[Form, Route] = {"single": JobRoute(), "csv": upload}
        with watched(self.metrics_urls, (trace.warm_up_seconds, trace.seconds)) as use:
            outcomes = send(
                trace, routes, lambda: Connection(self.place, trust), drain_seconds=self.drain_seconds
            )
        summary = summarise(trace, outcomes, self.goal, num_devices=self.num_workers)
        return Run(trace.images_per_second, trace, outcomes, summary, use)


def find_knee(
    run: Callable[[Trace], Run], load: Load, *, first_rate: float, share: float, max_runs: int
) -> Found[Run]:
    """Search the highest rate at which at least `share` of the requests meets the goal."""

    def holds(found: Run) -> bool:
        return (found.summary.in_goal_share or 0.0) >= share

    return search(lambda rate: run(load.at(rate)), holds, first_rate=first_rate, max_probes=max_runs)
