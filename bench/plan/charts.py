"""The plots of a plan: price against latency with the front, and latency of the recommended fleet by rate.

It draws with matplotlib, which the planner itself does not need, and knows no simulation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK, FAINT, FRONT, CHOSEN = "#24292f", "#8c959f", "#0072B2", "#D55E00"
MAX_SHOWN_P95 = 10  # times the fastest: beyond it the queue grows, and the number means nothing


def draw(plan: dict[str, Any], rates: Sequence[dict[str, float]], folder: Path) -> list[Path]:
    """Write the plots as PNG and SVG, and return their files; raises `ImportError` without matplotlib."""
    return [*_draw_front(plan, folder), *(_draw_rates(plan, rates, folder) if rates else [])]


def _draw_front(plan: dict[str, Any], folder: Path) -> list[Path]:
    figure, axes = _figure("Price and latency of every fleet that was simulated")
    has_prices = any(one["price_per_month"] for one in plan["tried"])
    key = "price_per_month" if has_prices else "devices"
    steady = [one for one in plan["tried"] if one["keeps_up"]]
    most = MAX_SHOWN_P95 * min((one["p95_seconds"] for one in steady), default=1.0)
    shown = [one for one in steady if one["p95_seconds"] <= most]
    front = [one for one in plan["front"] if one["p95_seconds"] <= most]
    axes.plot(
        [one[key] for one in shown], [one["p95_seconds"] for one in shown], "o", color=FAINT, markersize=4
    )
    axes.plot([one[key] for one in front], [one["p95_seconds"] for one in front], "-o", color=FRONT)
    for one in front:
        axes.annotate(
            str(one["devices"]), (one[key], one["p95_seconds"]), xytext=(5, 6),
            textcoords="offset points", color=FRONT, fontsize=8,
        )  # fmt: skip
    chosen = plan["recommended"]
    if chosen is not None:
        axes.plot([chosen[key]], [chosen["p95_seconds"]], "*", color=CHOSEN, markersize=14)
    _goal(axes, plan["request"]["goals"]["p95_seconds"])
    currency = plan["request"]["currency"]
    axes.set_xlabel(f"{currency} a month (numbers: devices)" if has_prices else "devices")
    axes.set_ylabel("p95 of interactive jobs, seconds")
    axes.set_ylim(0)
    return _save(figure, folder, "front")


def _draw_rates(plan: dict[str, Any], rates: Sequence[dict[str, float]], folder: Path) -> list[Path]:
    figure, axes = _figure("Latency of the recommended fleet as traffic grows")
    xs = [one["images_per_second"] for one in rates]
    for name, colour in (("p50", FRONT), ("p95", CHOSEN), ("p99", FAINT)):
        ys = [one[f"{name}_seconds"] for one in rates]
        axes.plot(xs, ys, "-o", color=colour)
        axes.annotate(name, (xs[-1], ys[-1]), xytext=(8, -3), textcoords="offset points", color=colour)
    _goal(axes, plan["request"]["goals"]["p95_seconds"])
    axes.set_xlabel("images that arrive in a second")
    axes.set_ylabel("latency of interactive jobs, seconds")
    axes.set_ylim(0)
    return _save(figure, folder, "rates")


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.9), dpi=144, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", color=INK, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#d0d7de", linewidth=0.6)
    return figure, axes


def _goal(axes: Any, seconds: float | None) -> None:
    if seconds is not None:
        axes.axhline(seconds, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate("goal of p95", (0, seconds), xycoords=("axes fraction", "data"), xytext=(4, 4),
                      textcoords="offset points", fontsize=8.5)  # fmt: skip


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    figure.savefig(paths[0], facecolor="white", metadata={"Software": None})
    figure.savefig(paths[1], facecolor="white", metadata={"Date": None})
    return paths
