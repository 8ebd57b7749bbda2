"""The table as Markdown, JSON and CSV, and its plots: the plane, each factor's effect, steps against quality.

Owns the shape of the files in `bench-output/table`. It measures nothing.
"""

import csv
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import charts
from bench.charts import Curve, Effect, Mark
from bench.table.arms import BASE_ARM, BASE_SETTINGS, FACTORS
from bench.table.measured import Samples, by_key, ratios
from bench.table.quality import POINTS_OF_KNEE, QualityCurve

Spread = tuple[float, float, float]
"""Median, least and greatest."""
COLUMNS = (
    "factor",
    "setting",
    "clock",
    "alone_seconds",
    "alone_ratio",
    "images_per_second",
    "throughput_ratio",
    "step_batch",
    "obeyed",
)
_NAMES, _SPREADS = COLUMNS[:3], COLUMNS[3:8]


def document(
    found: Sequence[Samples], quality: Sequence[QualityCurve], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `table.json`: every sample, so that other figures can be computed from it."""
    return {
        **about,
        "base": {"request": BASE_ARM.request, "service": vars(BASE_ARM.service)},
        "arms": [
            {
                "factor": one.arm.factor,
                "setting": one.arm.setting,
                "request": one.arm.request,
                "service": vars(one.arm.service),
                "alone_seconds": one.alone_seconds,
                "images_per_second": one.images_per_second,
                "step_batches": one.step_batches,
                "obeyed": one.obeyed,
                "curve": {
                    f"{load:g}": [summary.as_json() for summary in summaries]
                    for load, summaries in one.curve.items()
                },
            }
            for one in found
        ],
        "quality": [
            {
                "scheduler": one.scheduler,
                "steps": one.steps,
                "obeyed": one.obeyed,
                "intervals": [one.interval(steps) for steps in one.steps],
                "knee": one.knee,
                "knee_below_best": one.below_best(one.knee),
                "captions": len(one.obeys[0]),
            }
            for one in quality
        ],
    }


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest of the rounds."""
    return statistics.median(values), min(values), max(values)


def rows(found: Sequence[Samples]) -> Iterator[dict[str, Any]]:
    """A row for each arm: medians with the least and the greatest round, and ratios to the base."""
    base = by_key(found)[BASE_ARM.key]
    for one in found:
        own = one.base or base
        yield {
            "factor": one.arm.factor,
            "setting": one.arm.setting,
            "clock": one.arm.service.clock,
            "alone_seconds": spread(one.alone_seconds),
            "alone_ratio": spread(ratios(one, own, lambda samples: samples.alone_seconds)),
            "images_per_second": spread(one.images_per_second),
            "throughput_ratio": spread(ratios(one, own, lambda samples: samples.images_per_second)),
            "step_batch": spread(one.step_batches) if one.step_batches else None,
            "obeyed": one.obeyed,
        }


def markdown(
    found: Sequence[Samples], quality: Sequence[QualityCurve], notes: Sequence[str]
) -> Iterator[str]:
    """The table and the quality of numbers of steps, as lines of Markdown."""
    yield (
        "| factor | setting | seconds of | alone, s | of base | images/s, saturated | of base | step batch "
        "| % right |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows(found):
        cells = [row[name] for name in _NAMES] + [_shown(row[name]) for name in _SPREADS]
        cells.append("" if row["obeyed"] is None else f"{row['obeyed']:.1f}")
        yield f"| {' | '.join(cells)} |"
    for curve in quality:
        yield ""
        yield f"| {curve.scheduler}: steps | {' | '.join(map(str, curve.steps))} |"
        yield f"|---|{'---|' * len(curve.steps)}"
        yield f"| % right | {' | '.join(f'{share:.1f}' for share in curve.obeyed)} |"
        yield ""
        low, high = curve.below_best(curve.knee)
        yield (
            f"Knee of {curve.scheduler}: {curve.knee} steps, the fewest that are within {POINTS_OF_KNEE:g} "
            f"points of the best; of resampled captions, 95 % are {low:.1f} to {high:.1f} points below it."
        )
    yield from notes


def write(
    found: Sequence[Samples],
    quality: Sequence[QualityCurve],
    notes: Sequence[str],
    about: Mapping[str, Any],
    folder: Path,
) -> list[Path]:
    """Write all files; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_csv, as_markdown = (folder / f"table.{kind}" for kind in ("json", "csv", "md"))
    text = json.dumps(document(found, quality, about), indent=1, ensure_ascii=False)
    as_json.write_text(text + "\n", encoding="utf-8")
    as_markdown.write_text("\n".join(markdown(found, quality, notes)) + "\n", encoding="utf-8")
    with as_csv.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        spreads = [f"{name}{end}" for name in _SPREADS for end in ("", "_least", "_greatest")]
        writer.writerow([*_NAMES, *spreads, "obeyed"])
        for row in rows(found):
            values = [value for name in _SPREADS for value in row[name] or (None, None, None)]
            writer.writerow([*(row[name] for name in _NAMES), *values, row["obeyed"]])
    return [as_json, as_csv, as_markdown, *plots(found, quality, folder)]


def plots(found: Sequence[Samples], quality: Sequence[QualityCurve], folder: Path) -> list[Path]:
    """Draw the two planes, the effects and the quality."""
    paths = charts.save(plane(found), folder, "plane")
    paths += charts.save(factor_plane(found), folder, "plane-factors")
    effects = [
        ("throughput", "images a second at saturation, as a multiple of the base", "images_per_second"),
        ("alone", "seconds of a request alone, as a multiple of the base", "alone_seconds"),
    ]
    for name, x_name, field in effects:
        figure = charts.effects(
            list(effects_of(found, field)), title="What each factor changes", x_name=x_name
        )
        paths += charts.save(figure, folder, f"effects-{name}")
    if quality:
        paths += charts.save(quality_figure(quality), folder, "quality")
    return paths


def plane(found: Sequence[Samples]) -> Any:
    """Latency against throughput: a curve for each service, at the request of the base arm."""
    curves = [curve_of(one) for one in found if one.curve]
    return charts.plane(
        curves,
        title="Latency against throughput (small figures: offered load ÷ saturation)",
        x_name="images per second",
        y_name="p95 of latency, seconds",
    )


def factor_plane(found: Sequence[Samples]) -> Any:
    """Seconds alone against images a second at saturation: a line for each factor, through its settings."""
    known = by_key(found)
    curves = []
    for factor, arms in FACTORS.items():
        measured = [known[arm.key] for arm in arms if arm.key in known]
        if not measured or measured[0].base is not None:  # those have another clock
            continue
        points = sorted(
            [
                (statistics.median(one.images_per_second), statistics.median(one.alone_seconds), setting)
                for one, setting in [
                    (known[BASE_ARM.key], BASE_SETTINGS[factor]),
                    *((one, one.arm.setting) for one in measured),
                ]
            ]
        )
        rates, seconds, settings = zip(*points, strict=True)
        curves.append(Curve(factor, rates, seconds, labels=settings))
    return charts.plane(
        curves,
        title="What each factor trades: seconds alone against throughput",
        x_name="images per second at saturation",
        y_name="seconds of a request alone",
        log_x=True,
        log_y=True,
    )


def curve_of(samples: Samples) -> Curve:
    """The medians over the rounds; beyond the chart where a miss has the p95 of a round."""
    points, beyond = [], []
    for load, summaries in sorted(samples.curve.items()):
        latencies = [one.latency.p95 for one in summaries]
        rate = statistics.median(one.images_per_second for one in summaries)
        if all(map(math.isfinite, latencies)):
            points.append((load, rate, *spread(latencies)))
        else:
            beyond.append((rate, f"{load:g}: missed"))
    return Curve(
        samples.arm.service.name,
        [rate for _, rate, *_ in points],
        [middle for _, _, middle, _, _ in points],
        [low for *_, low, _ in points],
        [high for *_, high in points],
        [f"{load:g}" for load, *_ in points],
        beyond,
    )


def effects_of(found: Sequence[Samples], field: str) -> Iterator[Effect]:
    """The ratios of each factor's settings to the base, with those of single rounds."""
    known = by_key(found)
    base = known[BASE_ARM.key]
    for factor, arms in FACTORS.items():
        measured = [known[arm.key] for arm in arms if arm.key in known]
        if not measured:
            continue
        spreads = [
            spread(ratios(one, one.base or base, lambda samples: getattr(samples, field))) for one in measured
        ]
        yield Effect(
            factor,
            [BASE_SETTINGS[factor], *(one.arm.setting for one in measured)],
            [1.0, *(middle for middle, _, _ in spreads)],
            [1.0, *(low for _, low, _ in spreads)],
            [1.0, *(high for *_, high in spreads)],
        )


def quality_figure(quality: Sequence[QualityCurve]) -> Any:
    """The share of right images against steps, with the knee of each scheduler."""
    curves = []
    for one in quality:
        lows, highs = zip(*(one.interval(steps) for steps in one.steps), strict=True)
        curves.append(Curve(one.scheduler, one.steps, one.obeyed, lows, highs))
    marks = [
        Mark(one.knee, one.obeyed[one.steps.index(one.knee)], f"knee: {one.knee} steps") for one in quality
    ]
    return charts.plane(
        curves,
        title="Steps against quality",
        x_name="number of steps",
        y_name="% of captions that the image obeys",
        marks=marks,
        log_x=True,
        log_y=False,
    )


def _shown(values: Spread | None) -> str:
    if values is None:
        return ""
    middle, low, high = values
    return f"{middle:.3g}" if low == high else f"{middle:.3g} ({low:.3g} to {high:.3g})"
