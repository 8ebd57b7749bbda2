"""What `calotype bench` measures: requests alone, then runs or a search, then some requests again.

It owns their order, and the defaults that depend on the service. It reads no option and prints nothing.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.load.alone import MAX_CLASSES, AloneError, classes_of, measure_alone, repeat
from bench.load.connection import Connection, Place
from bench.load.mix import Mix, Weighted
from bench.load.report import Measurement
from bench.load.runs import (
    Bench,
    Load,
    Pattern,
    Run,
    Served,
    ServiceError,
    find_knee,
    look,
    usual_mix,
    usual_rate,
)
from bench.load.summary import Goal
from bench.load.trace import Trace

Say = Callable[[str], None]
Keep = Callable[[Measurement], None]


@dataclass(frozen=True)
class Search:
    """How the highest rate is searched at which the share `target` of the requests meets the goal."""

    target: float = 0.9
    max_runs: int = 10


@dataclass(frozen=True)
class Setup:
    """What to measure. `shares` are fields of `Mix`; what is missing there is the service's default.

    Without `rates` and `replayed` the rate is a guess from the times alone and the number of live workers.
    """

    goal: Goal
    shares: Mapping[str, Weighted[Any]]
    pattern: Pattern
    pattern_name: str
    seconds: float
    warm_up_seconds: float
    drain_seconds: float
    seed: int
    rates: Sequence[float] = ()
    csv_rows: int = 20
    prompts: tuple[str, ...] = ()
    model: str | None = None
    replayed: Trace | None = None
    search: Search | None = None
    num_repeats: int = 0
    name: str = "calotype"
    metrics_urls: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


def measure(
    setup: Setup, place: Place, say: Say = lambda _: None, keep: Keep = lambda _: None
) -> Measurement:
    """Measure it; `say` is told of each step, `keep` what is known after each run. Raises `ServiceError`."""
    connection = Connection(place, place.trust())
    try:
        served = look(connection, _model_of(setup))
        load = _load(setup, served)
        alone = _times_alone(setup, load, connection, say)
        goal = Goal(setup.goal.seconds, setup.goal.times, alone)
        bench = Bench(place, goal, served.num_workers, setup.drain_seconds, setup.metrics_urls)
        found = Measurement(setup.name, {**_about(place, served), **setup.about}, goal)

        def done(run: Run) -> None:
            found.runs.append(run)
            keep(found)
            say(run.in_short())

        rates = setup.rates or ([] if setup.replayed else [usual_rate(served, alone, load.mix)])
        say(f"{len(alone)} classes of requests alone: {', '.join(f'{one:.3g} s' for one in alone.values())}")
        if setup.search is not None:
            _search(bench, load, rates[0], setup.search, found, done)
        else:
            for trace in _traces(setup, load, rates):
                done(bench.run(trace))
        if setup.num_repeats:
            found.further["repeats"] = _repeats(setup.num_repeats, found.runs, connection, say)
        return found
    except AloneError as error:
        raise ServiceError(str(error)) from error
    finally:
        connection.close()


def _model_of(setup: Setup) -> str | None:
    """The model that is asked for, which a trace names itself; None is the service's default."""
    return setup.replayed.arrivals[0].requests[0].get("model") if setup.replayed else setup.model


def _load(setup: Setup, served: Served) -> Load:
    mix: Mix = usual_mix(
        served,
        setup.shares,
        csv_rows=setup.csv_rows,
        prompts=setup.prompts,
        others={"model": setup.model} if setup.model else {},
    )
    return Load(mix, setup.pattern, setup.pattern_name, setup.seconds, setup.warm_up_seconds, setup.seed)


def _times_alone(setup: Setup, load: Load, connection: Connection, say: Say) -> dict[str, float]:
    """Each class's time alone, if the goal depends on it; else that of one request, which warms up."""
    arrivals = setup.replayed.arrivals if setup.replayed else ()
    requests = [request for arrival in arrivals for request in arrival.requests]
    classes = classes_of(requests or load.mix.classes())
    if setup.goal.times is None:
        return measure_alone(dict(list(classes.items())[:1]), connection, repeats=1)
    if len(classes) > MAX_CLASSES:
        raise ServiceError(
            f"{len(classes)} classes of requests, more than {MAX_CLASSES}, would each be timed alone: give "
            "the goal in seconds, such as --slo 5"
        )
    say(f"timing {len(classes)} classes of requests alone")
    return measure_alone(classes, connection)


def _search(
    bench: Bench, load: Load, rate: float, search: Search, found: Measurement, done: Callable[[Run], None]
) -> None:
    def run(trace: Trace) -> Run:
        one = bench.run(trace)
        done(one)
        return one

    result = find_knee(run, load, first_rate=rate, share=search.target, max_runs=search.max_runs)
    found.knee = result.best.result if result.best else None
    # The rates that were offered: a trace has whole arrivals, so that they differ from those asked for.
    found.further["search"] = {
        "target": search.target,
        "offered_at_knee": result.best and result.best.result.rate,
        "lowest_failed": result.lowest_failed and result.lowest_failed.result.rate,
        "is_narrow": result.is_narrow,
        "most_images_per_second": max(run.summary.images_per_second for run in found.runs),
    }


def _traces(setup: Setup, load: Load, rates: Sequence[float]) -> list[Trace]:
    if setup.replayed is None:
        return [load.at(rate) for rate in rates]
    return [setup.replayed.at_rate(rate) for rate in rates] or [setup.replayed]


def _repeats(number: int, runs: Sequence[Run], connection: Connection, say: Say) -> dict[str, Any]:
    say(f"drawing {number} requests again, alone")
    found = repeat([outcome for run in runs for outcome in run.outcomes], number, connection)
    return {**vars(found), "is_within_one": found.is_within_one}


def _about(place: Place, served: Served) -> dict[str, Any]:
    return {
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "url": place.url,
        "service": vars(served),
        "load_generator": {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
    }
