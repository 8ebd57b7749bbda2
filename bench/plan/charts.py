"""The plots of a plan: price against latency with the front, and latency of the recommended fleet by rate.

It knows the JSON of a plan, and no simulation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.charts import Curve, Level, Mark, plane, save

MAX_SHOWN_P95 = 10  # times the fastest: beyond it the queue grows, and the number means nothing
HEADROOM = 1.08


def draw(plan: dict[str, Any], rates: Sequence[dict[str, float]], folder: Path) -> list[Path]:
    """Write the plots as PNG and SVG, and return their files."""
    return [*_draw_front(plan, folder), *(_draw_rates(plan, rates, folder) if rates else [])]


def _draw_front(plan: dict[str, Any], folder: Path) -> list[Path]:
    has_prices = any(one["price_per_month"] for one in plan["tried"])
    key = "price_per_month" if has_prices else "devices"
    steady = [one for one in plan["tried"] if one["keeps_up"]]
    most = MAX_SHOWN_P95 * min((one["p95_seconds"] for one in steady), default=1.0)
    shown, front = ([one for one in group if one["p95_seconds"] <= most] for group in (steady, plan["front"]))

    def curve(name: str, group: Sequence[dict[str, Any]], labels: Sequence[str] = ()) -> Curve:
        xs, ys = ([one[what] for one in group] for what in (key, "p95_seconds"))
        return Curve(name, xs, ys, labels=labels)

    chosen = plan["recommended"]
    goals = _goals(plan)
    heights = [one["p95_seconds"] for one in shown] + [goal.y for goal in goals]
    currency = plan["request"]["currency"]
    figure = plane(
        [curve("the front", front, [str(one["devices"]) for one in front])],
        title="Price and latency of every fleet that was simulated",
        x_name=f"{currency} a month (numbers: devices)" if has_prices else "devices",
        y_name="p95 of interactive jobs, seconds",
        dots=[curve("tried", shown)],
        marks=[] if chosen is None else [Mark(chosen[key], chosen["p95_seconds"], "recommended")],
        levels=goals,
        log_y=False,
        y_range=(0, HEADROOM * max(heights, default=1.0)),
    )
    return save(figure, folder, "front")


def _draw_rates(plan: dict[str, Any], rates: Sequence[dict[str, float]], folder: Path) -> list[Path]:
    xs = [one["images_per_second"] for one in rates]
    curves = [Curve(name, xs, [one[f"{name}_seconds"] for one in rates]) for name in ("p50", "p95", "p99")]
    goals = _goals(plan)
    most = max([y for curve in curves for y in curve.ys] + [goal.y for goal in goals])
    figure = plane(
        curves,
        title="Latency of the recommended fleet as traffic grows",
        x_name="images that arrive in a second",
        y_name="latency of interactive jobs, seconds",
        levels=goals,
        log_y=False,
        y_range=(0, HEADROOM * most),
    )
    return save(figure, folder, "rates")


def _goals(plan: dict[str, Any]) -> list[Level]:
    seconds = plan["request"]["goals"]["p95_seconds"]
    return [] if seconds is None else [Level(seconds, "goal of p95")]
