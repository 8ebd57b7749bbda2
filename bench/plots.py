"""Draws the results of `bench.engine` as small SVG files that are legible in light and dark mode.

    python -m bench.plots bench-output/engine.json [--out docs/explanation]

It also prints the figures as a Markdown table for the docs. It reads the list of figures and the curves
beside it, and knows only these files.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 64, 46
COLOURS = ("#d0652a", "#9a6ef0", "#2da44e")
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f } .axis { stroke: #8c959f } .grid { stroke: #8c959f55 }
.bar { stroke: #24292f; stroke-width: 2 } .end { text-anchor: end } .mid { text-anchor: middle }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .bar { stroke: #e6edf3 } }
</style>"""


@dataclass(frozen=True)
class Line:
    """One curve: `dashed` if it is the second of its colour."""

    name: str
    colour: str
    xs: Sequence[float]
    ys: Sequence[float]
    dashed: bool = False


def chart(title: str, x_name: str, lines: Sequence[Line], x_ticks: Sequence[float]) -> str:
    """Lines over a grid, with a legend above it."""
    y_ticks = _even(max(y for line in lines for y in line.ys))
    across = _scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    down = _scale(0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [
        f'<text x="{LEFT}" y="18">{escape(title)}</text>',
        *(f'<path class="grid" d="M{LEFT} {down(y):.1f}H{WIDTH - RIGHT}"/>' for y in y_ticks),
        *(f'<text class="end" x="{LEFT - 8}" y="{down(y) + 4:.1f}">{y:g}</text>' for y in y_ticks),
        *(f'<text class="mid" x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 18}">{x:g}</text>' for x in x_ticks),
        f'<text class="mid" x="{middle}" y="{HEIGHT - 8}">{escape(x_name)}</text>',
        f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
    ]
    left = LEFT
    for line in lines:
        points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(line.xs, line.ys, strict=True))
        stroke = f'stroke="{line.colour}" stroke-width="2"' + ' stroke-dasharray="6 4"' * line.dashed
        parts.append(f'<polyline fill="none" {stroke} points="{points}"/>')
        if not line.dashed:
            parts.append(f'<path d="M{left} 40h18" {stroke}/>')
            parts.append(f'<text x="{left + 24}" y="44">{escape(line.name)}</text>')
            left += 44 + 8 * len(line.name)
    return _svg(HEIGHT, parts)


def bullets(figures: Sequence[Mapping[str, Any]]) -> str:
    """Plot for each figure the share of its bar that it reaches, at most twice; higher is better."""
    figures = [one for one in figures if one["bar"] is not None]
    row, left, right = 26, 262, WIDTH - 150
    height = 48 + row * len(figures)
    across = _scale(0, 2, left, right)
    parts = [f'<text x="{left}" y="18">reached, as a share of the bar (the upright line)</text>']
    for place, one in enumerate(figures):
        at = 44 + place * row
        value, low, high = (across(_reached(one, one[name])) for name in ("value", "low", "high"))
        colour = COLOURS[2] if one["holds"] else COLOURS[0]
        sign = "≤" if one["is_at_most"] else "≥"
        parts += [
            f'<text class="end" x="{left - 10}" y="{at + 4}">{escape(one["figure"])}</text>',
            f'<path d="M{left} {at}H{value:.1f}" stroke="{colour}" stroke-width="10"/>',
            f'<path class="bar" d="M{min(low, high):.1f} {at}H{max(low, high):.1f}"/>',
            f'<text x="{right + 12}" y="{at + 4}">{one["value"]:.3g} (bar {sign} {one["bar"]:.3g})</text>',
        ]
    parts.append(f'<path class="bar" d="M{across(1):.1f} 30V{height - 12}"/>')
    return _svg(height, parts)


def _reached(figure: Mapping[str, Any], value: float) -> float:
    bar: float = figure["bar"]
    if not figure["is_at_most"]:
        return min(2.0, max(0.0, value / bar))
    return min(2.0, bar / value) if value > 0 else 2.0


def markdown(figures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line a figure, as the page shows them."""
    yield "| figure | median (least to greatest) | bar | holds | limit, or what stands beside it |"
    yield "|---|---|---|---|---|"
    for one in figures:
        value, low, high = (f"{one[name]:.2f}" for name in ("value", "low", "high"))
        spread = f"{value} ({low} to {high})" if low != high else value
        holds = {True: "yes", False: "**no**", None: ""}[one["holds"]]
        limit = "" if one["limit"] is None else f"{one['limit']:.2f}: "
        yield f"| `{one['figure']}` | {spread} | {_bar(one)} | {holds} | {limit}{one['reason']} |"


def _bar(figure: Mapping[str, Any]) -> str:
    if figure["bar"] is None:
        return ""
    if figure["share"] is not None:
        return f"{figure['bar']:.2f}, {figure['share']:g} of the limit"
    return f"at most {figure['bar']:g}" if figure["is_at_most"] else f"{figure['bar']:g}"


def _svg(height: int, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', STYLE, *parts, "</svg>\n"])


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _even(most: float) -> list[float]:
    """Some round numbers from 0 to no less than `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    step = next(power * part for part in (0.2, 0.5, 1.0, 2.0) if power * part * 5 >= most)
    return [step * place for place in range(math.ceil(most / step - 1e-9) + 1)]


def plots(figures: Sequence[Mapping[str, Any]], curves: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each plot's name and its SVG."""
    loads = curves["loads"]
    colours = dict(zip(curves["p50_seconds"], COLOURS, strict=True))

    def lines(key: str, *, dashed: bool = False) -> list[Line]:
        return [Line(name, colours[name], loads, ys, dashed) for name, ys in curves[key].items()]

    load, title = (
        "load, as a share of capacity",
        "seconds until the image: 95 % (dashed: half) have it by then",
    )
    both = lines("p95_seconds") + lines("p50_seconds", dashed=True)
    yield "latency", chart(title, load, both, loads)
    title = "share within 3 times the time alone (dashed: the engine is told these deadlines)"
    both = lines("in_time") + lines("in_time_with_deadlines", dashed=True)
    yield "in-time", chart(title, load, both, loads)
    curve = {side: [1000 * seconds for seconds in ys] for side, ys in curves["step_seconds"].items()}
    rows = range(1, max(map(len, curve.values())) + 1)
    tiers = [
        Line(side, colour, rows[: len(ys)], ys)
        for (side, ys), colour in zip(curve.items(), COLOURS[:0:-1], strict=True)
    ]
    yield "step-seconds", chart("milliseconds of a step", "rows", tiers, rows)
    yield "figures", bullets(figures)


def main() -> None:
    """Write the files, say which, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("figures", type=Path, help="engine.json; curves.json lies beside it")
    parser.add_argument("--out", type=Path, default=Path("docs/explanation"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = json.loads(arguments.figures.read_text(encoding="utf-8"))
    curves = json.loads(arguments.figures.with_name("curves.json").read_text(encoding="utf-8"))
    for name, svg in plots(figures, curves):
        path = arguments.out / f"step-batches-{name}.svg"
        path.write_text(svg, encoding="utf-8")
        print(path)
    print("\n".join(markdown(figures)))


if __name__ == "__main__":
    main()
