"""How near the planner's predictions come to the running service: `python -m bench.plan.validation`.

Starts the service on this machine in several configurations (workers, row caps, mixes, load), sends each two
traces as `calotype bench` does, and compares latencies with those that a calibration made before predicts,
corrected by a burst in the same service before the runs.
The predicted run has the arrivals of the measured one. Two more figures say how far off predictions are for
other arrivals of the same rate, which no model can know, and from profiles alone. Run it on an idle machine.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.charts import Effect, save
from bench.charts import effects as draw_effects
from bench.figures import Figure, figure_of, quantile
from bench.load.runs import Run
from bench.parts import FOLDER, run_parts
from bench.plan.calibration import (
    SHORT,
    SIDE,
    WHOLE,
    Amounts,
    Burst,
    Calibration,
    calibrate,
    configured,
    latency_seconds,
    planned,
    sent,
)
from bench.plan.fleets import Fleet
from bench.plan.outcome import Outcome, serve
from bench.plane.system import plane_system
from bench.workload import DueRequest, mixed_requests, poisson

FILE = "planner.json"
LARGE_SIDE = 192
WARM_UP_SHARE = 0.1
SEEDS, OTHER_SEEDS = (1, 2), (101, 102, 103)
RUN_SECONDS, SHORT_SECONDS = 36.0, 8.0
NUM_BURST = 16
"""Requests for each worker, before the runs of a configuration."""
MIN_REQUESTS = 12
BARS = {"p50": 0.15, "p95": 0.25}
KNOWN, UNSEEN, UNCALIBRATED = "", "unseen", "uncalibrated"
PREDICTIONS = {
    KNOWN: "median over {num} configurations; two runs with other arrivals differ by {spread:.2f}",
    UNSEEN: "the same for a prediction of other arrivals at this rate, as a plan makes it",
    UNCALIBRATED: "the same from profiles alone, as a plan is made: no seconds beside the device, no slowing",
}


@dataclass(frozen=True)
class Configuration:
    """A service: workers, caps by tier, the mix of its requests and the share of its capacity."""

    num_workers: int
    caps: Mapping[str, int]
    mix: str
    load: float

    @property
    def name(self) -> str:
        """It in words."""
        caps = "/".join(str(rows) for rows in self.caps.values())
        return f"{self.num_workers} workers, {caps} rows, {self.mix}, load {self.load:g}"


CONFIGURATIONS = (
    Configuration(1, {"sd": 16, "hd": 8}, "mixed steps", 0.3),
    Configuration(1, {"sd": 4, "hd": 4}, "mixed steps", 0.7),
    Configuration(2, {"sd": 16, "hd": 8}, "mixed steps", 0.5),
    Configuration(2, {"sd": 8, "hd": 4}, "few steps", 0.7),
    Configuration(2, {"sd": 4, "hd": 4}, "two sizes", 0.6),
    Configuration(2, {"sd": 16, "hd": 8}, "mixed steps", 0.85),
)


@dataclass(frozen=True)
class Compared:
    """One run: latencies in seconds, measured and predicted."""

    measured: tuple[float, float]  # p50 and p95
    predicted: tuple[float, float]
    measured_busy_share: float | None = None  # of the devices, as `calotype bench` counts their seconds
    predicted_busy_share: float | None = None  # with a known calibration and known arrivals

    def error(self, index: int) -> float:
        """The difference as a share of what was measured."""
        return abs(self.predicted[index] - self.measured[index]) / self.measured[index]


def measure(*, is_short: bool, folder: Path = FOLDER) -> Iterator[Figure]:
    """The errors of p50 and p95 over all configurations, and the spread of the runs beside them.

    Each run is written to `planner-runs.json` in the folder, and drawn beside its predictions.
    """
    amounts, seconds = (SHORT, SHORT_SECONDS) if is_short else (WHOLE, RUN_SECONDS)
    chosen = (CONFIGURATIONS[0], CONFIGURATIONS[4]) if is_short else CONFIGURATIONS
    calibrations = _calibrations(sorted({one.num_workers for one in chosen}), amounts)
    runs: dict[str, dict[str, list[Compared]]] = {prediction: {} for prediction in PREDICTIONS}
    for one in chosen:
        with tempfile.TemporaryDirectory() as service:
            compared = _compared(one, calibrations[one.num_workers], Path(service), seconds)
        for prediction, found in compared.items():
            runs[prediction][one.name] = found
    write_runs(runs, folder)
    yield from figures_of(runs)


def _calibrations(counts: Sequence[int], amounts: Amounts) -> dict[int, Calibration]:
    found = {}
    for num_workers in counts:
        with tempfile.TemporaryDirectory() as folder:
            one = found[num_workers] = calibrate(Path(folder), num_workers, amounts)
        steps = ", ".join(
            f"{step.num_rows}: {1000 * step.seconds:.1f}" for step in one.profiles["sd"].profile.steps
        )
        print(
            f"  {num_workers} workers: ms of a step by rows {steps}; the device is "
            f"{one.lone_slowing:.2f} times slower alone, {one.full_slowing:.2f} times at saturation; "
            f"{1000 * one.service_seconds:.0f} ms of CPU of the service an image; {one.overheads}",
            flush=True,
        )
    return found


def _compared(
    one: Configuration, calibration: Calibration, folder: Path, seconds: float
) -> dict[str, list[Compared]]:
    """The runs of a configuration beside each of `PREDICTIONS`."""
    pool = calibration.pool(one.num_workers, one.caps)
    fleet = Fleet((pool,))
    rate = _rate(one, calibration, fleet)
    traces = {seed: _trace(one.mix, rate, seconds, seed) for seed in (*SEEDS, *OTHER_SEEDS)}
    bare = {seed: _uncalibrated(fleet, traces[seed]).seconds[:2] for seed in SEEDS}
    config = configured(folder, one.num_workers, one.caps)
    compared: dict[str, list[Compared]] = {prediction: [] for prediction in PREDICTIONS}
    with plane_system(folder / "system", overrides={"CALOTYPE_CONFIG": str(config)}) as plane:
        sent(plane, [DueRequest(each.request, 0.0) for each in traces[SEEDS[0]][:4]])
        # A shared machine is a third faster or slower minutes later. A user's plan cannot know that either.
        now = calibration.at_pace(Burst.sent(plane, NUM_BURST).slowing(pool, calibration.overheads))
        slowing = now.slowing(one.load)
        outcomes = {seed: _predicted(fleet, trace, now, slowing) for seed, trace in traces.items()}
        others = [outcomes[seed].seconds[:2] for seed in OTHER_SEEDS]
        unseen = (statistics.median(p50 for p50, _ in others), statistics.median(p95 for _, p95 in others))
        print(
            f"  {one.name}: the devices are {now.full_slowing:.2f} times slower at saturation, "
            f"{calibration.full_slowing:.2f} when they were calibrated",
            flush=True,
        )
        for seed in SEEDS:
            num_warm_up = int(WARM_UP_SHARE * len(traces[seed]))
            run = sent(plane, traces[seed], num_warm_up=num_warm_up)
            found = _latencies(run, num_warm_up)
            outcome = outcomes[seed]
            predicted = {KNOWN: outcome.seconds[:2], UNSEEN: unseen, UNCALIBRATED: bare[seed]}
            for prediction, pair in predicted.items():
                busy = run.summary.device_utilisation
                compared[prediction].append(Compared(found, pair, busy, outcome.busy_share))
            print(
                f"  {one.name}, {rate:.2f}/s, seed {seed}: p50 {found[0]:.2f} s, "
                f"predicted {outcome.seconds[0]:.2f}; p95 {found[1]:.2f} s, "
                f"predicted {outcome.seconds[1]:.2f}; for other arrivals {unseen[0]:.2f} and "
                f"{unseen[1]:.2f}; from the profiles alone {bare[seed][0]:.2f} and {bare[seed][1]:.2f}; "
                f"{outcome.mean_rows:.1f} rows, {outcome.busy_share:.0%} busy, "
                f"measured {run.summary.device_utilisation or 0:.0%}",
                flush=True,
            )
    return compared


def _rate(one: Configuration, calibration: Calibration, fleet: Fleet) -> float:
    """Requests a second that are this share of what the workers can do."""
    sample = [planned(each.request) for each in _trace(one.mix, 1.0, 400.0, seed=99)]
    [pool] = fleet.pools
    seconds = statistics.mean(pool.least_seconds(job) for job in sample) * calibration.full_slowing
    return one.load * one.num_workers / seconds


def _trace(mix: str, rate: float, seconds: float, seed: int) -> list[DueRequest]:
    """Poisson arrivals of a mix for so many seconds."""
    requests = mixed_requests(max(MIN_REQUESTS, round(rate * seconds)), SIDE, seed)
    rng = random.Random(seed)
    if mix == "few steps":
        requests = [replace(one, num_inference_steps=rng.choice((4, 8, 12))) for one in requests]
    if mix == "two sizes":
        sides = rng.choices((SIDE, LARGE_SIDE), (0.8, 0.2), k=len(requests))
        requests = [replace(one, width=side, height=side) for one, side in zip(requests, sides, strict=True)]
    return poisson(requests, rate, seed)


def _predicted(
    fleet: Fleet, trace: Sequence[DueRequest], calibration: Calibration, slowing: float
) -> Outcome:
    return serve(
        fleet,
        [(one.seconds, planned(one.request)) for one in trace],
        overheads=calibration.overheads,
        slowing=lambda: slowing,
        warm_up_share=WARM_UP_SHARE,
    )


def _uncalibrated(fleet: Fleet, trace: Sequence[DueRequest]) -> Outcome:
    arrivals = [(one.seconds, planned(one.request)) for one in trace]
    return serve(fleet, arrivals, warm_up_share=WARM_UP_SHARE)


def _latencies(run: Run, num_warm_up: int) -> tuple[float, float]:
    seconds = list(map(latency_seconds, run.outcomes[num_warm_up:]))
    return quantile(seconds, 0.5), quantile(seconds, 0.95)


def figures_of(runs: Mapping[str, Mapping[str, Sequence[Compared]]]) -> Iterator[Figure]:
    """The figures of these runs, by prediction and configuration."""
    for index, (name, bar) in enumerate(BARS.items()):
        for prediction, reason in PREDICTIONS.items():
            errors = [statistics.mean(one.error(index) for one in each) for each in runs[prediction].values()]
            if prediction != KNOWN:
                figure = f"planner_error_{name}_{prediction}"
                yield figure_of(figure, errors, None, None, reason, is_at_most=True)
                continue
            spreads = [_spread([one.measured[index] for one in each]) for each in runs[KNOWN].values()]
            reason = reason.format(num=len(errors), spread=statistics.median(spreads))
            yield figure_of(f"planner_error_{name}", errors, bar, 0.0, reason, is_at_most=True)


def write_runs(runs: Mapping[str, Mapping[str, Sequence[Compared]]], folder: Path) -> None:
    """`planner-runs.json`, and a plot of the predicted latencies as multiples of the measured ones."""
    folder.mkdir(parents=True, exist_ok=True)
    document = [
        {
            "configuration": name,
            "run": number,
            "measured": dict(zip(BARS, one.measured, strict=True)),
            "busy_share": {"measured": one.measured_busy_share, "predicted": one.predicted_busy_share},
            "predicted": {
                prediction or "known": dict(zip(BARS, found[name][number].predicted, strict=True))
                for prediction, found in runs.items()
            },
        }
        for name, each in runs[KNOWN].items()
        for number, one in enumerate(each)
    ]
    text = json.dumps({"unit": "seconds", "runs": document}, indent=1)
    (folder / "planner-runs.json").write_text(text + "\n", encoding="utf-8")
    effects = []
    for name, each in runs[KNOWN].items():
        ratios = [[one.predicted[index] / one.measured[index] for one in each] for index in range(len(BARS))]
        effects.append(
            Effect(
                name,
                ["measured", *BARS],
                [1.0, *map(statistics.median, ratios)],
                [1.0, *map(min, ratios)],
                [1.0, *map(max, ratios)],
            )
        )
    figure = draw_effects(effects, title="Predicted and measured latency", x_name="predicted ÷ measured")
    save(figure, folder, "planner")


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / statistics.mean(values)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="two configurations, to see that it runs")
    asked = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    out = FOLDER / "part" / FILE if asked.short else FOLDER / FILE
    run_parts({"planner": partial(measure, is_short=asked.short, folder=out.parent)}, out)


if __name__ == "__main__":
    main()
