"""What is kept of a measurement: a table, `result.json`, `summary.csv`, each run's requests, and the plots.

Owns the names and the shape of these files. It measures nothing.
"""

import csv
import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import charts
from bench.charts import Curve, Level, Mark, Panel
from bench.load import outcomes as outcome_files
from bench.load import trace as trace_files
from bench.load.outcomes import Outcome
from bench.load.runs import Run
from bench.load.summary import STAGES, Goal

RESULT = "result.json"
WINDOWS, MIN_IN_WINDOW = 12, 20
"""A moving percentile has a window of this part of a run, or a longer one that holds so many requests."""


class ResultError(ValueError):
    """A file that is not a result of `calotype bench`."""

    code = "invalid_result"
    retryable = False


@dataclass
class Measurement:
    """The runs of one configuration of one service, named `name`; `about` says what was measured, where."""

    name: str
    about: Mapping[str, Any]
    goal: Goal
    runs: list[Run] = field(default_factory=list)
    knee: Run | None = None
    further: dict[str, Any] = field(default_factory=dict)
    """Results that are not those of a run, such as a search's or repeated images."""

    def as_json(self) -> dict[str, Any]:
        """Return the content of `result.json`."""
        return {
            "name": self.name,
            **self.about,
            "goal": str(self.goal),
            "alone_seconds": dict(self.goal.alone),
            "knee_images_per_second": self.knee and self.knee.summary.images_per_second,
            **self.further,
            "runs": [
                {
                    "offered": run.rate,
                    "drawn": dict(run.trace.drawn),
                    **run.summary.as_json(),
                    "use": run.use.as_json(),
                }
                for run in self.runs
            ],
        }


COLUMNS: Sequence[tuple[str, str]] = (
    ("offered", "offered"),
    ("images/s", "images_per_second"),
    ("requests/min", "requests_per_minute"),
    ("mean", "latency.mean"),
    ("p50", "latency.p50"),
    ("p90", "latency.p90"),
    ("p95", "latency.p95"),
    ("p99", "latency.p99"),
    ("errors", "error_rate"),
    ("in goal", "in_goal_share"),
    ("in goal/s", "in_goal_per_second"),
    ("step batch", "mean_step_batch"),
    ("device", "device_utilisation"),
    ("engine", "use.engine_busy_share"),
    ("CPU", "use.cpu_share"),
    ("GPU", "use.gpu_share"),
    ("cost/image", "cost_per_image"),
    ("currency", "currency"),
)
"""The titles of the table and of `summary.csv`, and where each is in a run of `result.json`. In `summary.csv`
those that are `_SECONDS` say so, and the shares of stages follow."""
_STAGE_COLUMNS = tuple((f"{stage}_share", f"stage_shares.{stage}") for stage in STAGES)
_SHARES = {"errors", "in goal", "device", "engine", "CPU", "GPU"}
_SECONDS = {"mean", "p50", "p90", "p95", "p99"}


def table(measurement: Measurement) -> tuple[list[str], list[list[str]]]:
    """The titles and the rows of the table; a column that no run has a value for is left out."""
    runs = measurement.as_json()["runs"]
    kept = [
        (title, path)
        for title, path in COLUMNS
        if title in _SECONDS or any(_at(run, path) is not None for run in runs)
    ]
    rows = [[_shown(title, _at(run, path)) for title, path in kept] for run in runs]
    return [title for title, _ in kept], rows


def stage_table(measurement: Measurement) -> tuple[list[str], list[list[str]]]:
    """Where the latency of each run went, in shares."""
    rows = [
        [run.name, *(f"{run.summary.stage_shares[stage]:.0%}" for stage in STAGES)]
        for run in measurement.runs
        if run.summary.stage_shares
    ]
    return ["stage", *STAGES], rows


def remarks(measurement: Measurement) -> list[str]:
    """What a reader must know before the figures are used."""
    found = []
    for run in measurement.runs:
        summary = run.summary
        if summary.was_late:
            lag = f"{1000 * summary.send_lag_p99_seconds:.0f} ms late at p99"
            num_unsent = summary.by_kind.get("unsent", 0)
            found.append(
                f"{run.name}: the load generator was late ({lag}, {num_unsent} not sent), so this is not the "
                "load that was asked for"
            )
        misses = {kind: number for kind, number in summary.by_kind.items() if kind != "succeeded"}
        if misses:
            counted = ", ".join(f"{number} {kind}" for kind, number in misses.items())
            details = sorted({one.detail for one in run.outcomes if one.kind != "succeeded" and one.detail})
            found.append(f"{run.name}: misses: {counted} ({', '.join(details[:5])})")
        if summary.unwaited_share > 0:
            found.append(
                f"{run.name}: when {summary.unwaited_share:.0%} of the requests ended was taken from the "
                "service's clock: it lets fewer requests wait than were open, or they were rows of a CSV"
            )
        if run.use.unread:
            found.append(f"{run.name}: no metrics from {', '.join(run.use.unread)}")
        if reasons := _reasons(run):
            found.append(f"{run.name}: why step batches were not fuller: {reasons}")
    found += _unread_gpus(measurement.runs)
    return [*found, *conclusions(measurement)]


def _reasons(run: Run) -> str:
    """The share of each reason, the most frequent first; `full` is that of step batches without one."""
    numbers = run.use.as_json()["step_batches_by_reason"]
    total = sum(numbers.values())
    shares = sorted(((number / total, reason) for reason, number in numbers.items()), reverse=True)
    return ", ".join(f"{reason} {share:.0%}" for share, reason in shares)


def _unread_gpus(runs: Sequence[Run]) -> list[str]:
    """A line for each GPU and reason, however many runs it was so in."""
    told = {(index, reason): None for run in runs for index, reason in sorted(run.use.unread_gpus.items())}
    return [
        f"GPU {index} of the load generator's machine could not be read, and is left out where it was not: "
        f"{reason}"
        for index, reason in told
    ]


def conclusions(measurement: Measurement) -> list[str]:
    """What a search and repeated images found."""
    found = []
    search, repeats = measurement.further.get("search"), measurement.further.get("repeats")
    if search:
        rate, failed = search["offered_at_knee"], search["lowest_failed"]
        share = f"{search['target']:.0%} in goal"
        if rate is None:
            found.append(f"knee: none, no rate had {share}; start lower, with --rate")
        elif failed is None:
            found.append(f"knee: above {rate:.3g} images/s: every rate had {share}; allow more --max-runs")
        else:
            early = "" if search["is_narrow"] else "; --max-runs ended the search between them"
            found.append(
                f"knee: {rate:.3g} images/s, the highest offered rate with {share}; "
                f"{failed:.3g} images/s had less{early}"
            )
    if repeats:
        found.append(
            f"repeats: {repeats['num_equal']} of {repeats['num_images']} images drawn again alone have equal "
            f"bytes; the largest difference of a pixel is {repeats['largest_difference']} of 255"
        )
    return found


def prepare(folder: Path) -> None:
    """Make the folder and try to write there, before anything is measured. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"a try")


def keep(measurement: Measurement, folder: Path) -> None:
    """Write what is known after a run, without plots: an error in a later run then loses no earlier one."""
    _write_figures(measurement, folder)
    _write_run(len(measurement.runs), measurement.runs[-1], folder)


def excess_difference(measurement: Measurement) -> str | None:
    """How repeated images differ more than the service's determinism level allows; None if they do not."""
    repeats, level = measurement.further.get("repeats"), measurement.about["service"]["determinism"]
    if not repeats:
        return None
    if not repeats["num_images"]:
        return "no image was drawn again: no request that has a seed succeeded"
    if level == "exact" and repeats["num_equal"] < repeats["num_images"]:
        num_other = repeats["num_images"] - repeats["num_equal"]
        return (
            f"{num_other} of {repeats['num_images']} images drawn again, alone, have other bytes, by up to "
            f"{repeats['largest_difference']} of 255, and the level of the service is exact"
        )
    if level != "not repeatable" and not repeats["is_within_one"]:
        return f"an image drawn again, alone, differs by {repeats['largest_difference']} of 255"
    return None


def write(measurement: Measurement, folder: Path, beside: Sequence[Path] = ()) -> list[Path]:
    """Write all files into the folder; return their paths. Curves of the results `beside` are drawn too."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = _write_figures(measurement, folder)
    for number, run in enumerate(measurement.runs, 1):
        paths += _write_run(number, run, folder)
    return paths + plots(measurement, folder, [measurement.as_json(), *map(read, beside)])


def _write_figures(measurement: Measurement, folder: Path) -> list[Path]:
    document = measurement.as_json()
    result, summary = folder / RESULT, folder / "summary.csv"
    _replace(result, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    text = io.StringIO()
    writer = csv.writer(text)
    columns = (*COLUMNS, *_STAGE_COLUMNS)
    writer.writerow([f"{title}_seconds" if title in _SECONDS else title for title, _ in columns])
    writer.writerows([[_at(run, path) for _, path in columns] for run in document["runs"]])
    _replace(summary, text.getvalue())
    return [result, summary]


def _replace(path: Path, text: str) -> None:
    """Write the file as a whole or not at all: a full disk must not empty that of the runs before."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_run(number: int, run: Run, folder: Path) -> list[Path]:
    requests, trace = folder / f"requests-{number}.csv", folder / f"trace-{number}.jsonl"
    outcome_files.write(run.outcomes, requests)
    trace_files.write(run.trace, trace)
    return [requests, trace]


def read(folder: Path) -> dict[str, Any]:
    """The content of `result.json` in a folder. Raises `ResultError`, and `OSError` if it cannot be read."""
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{folder / RESULT} is not JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("runs"), list) or "name" not in found:
        raise ResultError(f"{folder / RESULT} is not a result of `calotype bench`")
    return found


def plots(measurement: Measurement, folder: Path, results: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Draw the plane with a curve for each result, and for our runs their course and their stages."""
    paths = []
    if sum(len(result["runs"]) for result in results) > 1:
        paths += charts.save(_plane(measurement, results), folder, "latency-throughput")
    if any(run.summary.stage_seconds for run in measurement.runs):
        bars = {run.name: run.summary.stage_seconds for run in measurement.runs if run.summary.stage_seconds}
        figure = charts.stacked(
            bars, title="Where the time of a request goes", x_name="mean seconds of a request"
        )
        paths += charts.save(figure, folder, "stages")
    for number, run in enumerate(measurement.runs, 1):
        paths += charts.save(_latency_over_time(run, measurement), folder, f"latency-{number}")
        paths += charts.save(_occupancy(run), folder, f"occupancy-{number}")
    return paths


def curve_of(result: Mapping[str, Any], percentile: str) -> Curve:
    """Throughput and a percentile of latency of each run; beyond the chart where misses reach it."""
    points = sorted(
        (run["offered"], run["images_per_second"], math.inf if latency is None else latency)
        for run in result["runs"]
        for latency in [run["latency"][percentile]]
    )
    drawn = [one for one in points if math.isfinite(one[-1])]
    return Curve(
        str(result["name"]),
        [rate for _, rate, _ in drawn],
        [latency for _, _, latency in drawn],
        labels=[f"{offered:.3g}" for offered, _, _ in drawn],
        beyond=[(rate, f"{offered:.3g}: missed") for offered, rate, latency in points if latency == math.inf],
    )


def _plane(measurement: Measurement, results: Sequence[Mapping[str, Any]]) -> Any:
    curves = [curve_of(result, "p95") for result in results]
    knee, marks = measurement.knee, []
    if knee is not None and math.isfinite(knee.summary.latency.p95):
        rate = knee.summary.images_per_second
        marks.append(Mark(rate, knee.summary.latency.p95, f"knee: {rate:.3g} images/s"))
    seconds = measurement.goal.seconds
    return charts.plane(
        curves,
        title="Latency against throughput (small figures: the offered images/s)",
        x_name="images per second that came out",
        y_name="p95 of latency, seconds from when a request was due",
        marks=marks,
        levels=[] if seconds is None else [Level(seconds, f"goal: within {seconds:g} s")],
    )


def _latency_over_time(run: Run, measurement: Measurement) -> Any:
    xs, ys = latencies_by_due(run.outcomes)
    window = float(
        math.ceil(max(run.trace.seconds / WINDOWS, MIN_IN_WINDOW * run.trace.seconds / max(1, len(xs))))
    )
    done = [(due, latency) for due, latency in zip(xs, ys, strict=True) if math.isfinite(latency)]
    missed = [due for due, latency in zip(xs, ys, strict=True) if not math.isfinite(latency)]
    top = max((latency for _, latency in done), default=1.0)
    dots = [Curve("a request", [due for due, _ in done], [latency for _, latency in done])]
    if missed:
        dots.append(Curve("a miss", missed, [1.05 * top] * len(missed)))
    seconds = measurement.goal.seconds
    panel = Panel(
        "seconds until its image",
        lines=[charts.smoothed(xs, ys, window=window, share=share) for share in (0.5, 0.95)] if xs else [],
        dots=dots,
        levels=[] if seconds is None else [Level(seconds, f"goal: within {seconds:g} s")],
    )
    return charts.over_time(
        [panel], title=f"Latency, {measurement.name}, {run.name}", x_name="seconds at which a request was due"
    )


def latencies_by_due(outcomes: Sequence[Outcome]) -> tuple[list[float], list[float]]:
    """When each request was due, in order, and its latency; a miss is infinitely late."""
    points = sorted(
        (one.due_seconds, math.inf if one.latency_seconds is None else one.latency_seconds)
        for one in outcomes
    )
    return [due for due, _ in points], [latency for _, latency in points]


def _occupancy(run: Run) -> Any:
    ended = sorted(
        (one.ended_seconds, one.timings["mean_step_batch"])
        for one in run.outcomes
        if one.ended_seconds is not None and "mean_step_batch" in one.timings
    )
    times = [sample.seconds for sample in run.use.samples]
    open_xs, open_ys = open_requests(run.outcomes)
    busy = [Curve("CPU of this machine", times, [sample.cpu_share for sample in run.use.samples])]
    gpus = [_gpu_shares(run, index) for index in range(_num_gpus(run))]
    busy += [
        Curve(f"GPU {index}", times, shares)
        for index, shares in enumerate(gpus)
        if any(map(math.isfinite, shares))
    ]
    return charts.over_time(
        [
            Panel("open requests", lines=[Curve("open requests", open_xs, open_ys)], is_stepped=True),
            Panel(
                "images in a step batch", dots=[Curve("a job", [x for x, _ in ended], [y for _, y in ended])]
            ),
            Panel("busy share", lines=busy, y_max=1.05),
        ],
        title=f"Occupancy, {run.name}",
    )


def _num_gpus(run: Run) -> int:
    return len(run.use.samples[0].gpu_shares) if run.use.samples else 0


def _gpu_shares(run: Run, index: int) -> list[float]:
    """A GPU's busy share in each sample; NaN, which is a gap in its curve, where it could not be read."""
    found = (sample.gpu_shares[index] for sample in run.use.samples)
    return [math.nan if share is None else share for share in found]


def open_requests(outcomes: Sequence[Outcome]) -> tuple[list[float], list[float]]:
    """How many requests are open at each moment at which that changes.

    One that was refused or lost is open until the client knew that; one that was never answered, for ever.
    """
    changes = sorted(
        [(one.due_seconds, 1) for one in outcomes]
        + [(one.ended_seconds, -1) for one in outcomes if one.ended_seconds is not None]
    )
    xs, ys, number = [], [], 0
    for at, change in changes:
        number += change
        xs.append(at)
        ys.append(float(number))
    return xs, ys


def _at(run: Mapping[str, Any], path: str) -> Any:
    found: Any = run
    for name in path.split("."):
        found = found.get(name)  # a run without timings has no shares of stages
    return found


def _shown(title: str, value: Any) -> str:
    if value is None:
        return "missed" if title in _SECONDS else "-"
    if isinstance(value, str):
        return value
    if title in _SHARES:
        return f"{value:.1%}"
    if title == "cost/image":
        return f"{value:.3g}"
    return f"{value:.3f}" if title in _SECONDS else f"{value:.2f}"
