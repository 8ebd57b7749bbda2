"""Charts in one style, written as PNG and SVG: they take plain series and know no benchmark.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which remain apart with the usual forms of
colour blindness; every curve also has a marker of its own, and its name beside its end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
INK, FAINT = "#24292f", "#8c959f"
SIZE_INCHES = (8.4, 4.9)
DPI = 144
STYLE: Any = {  # mypy has the names of the settings and no type for a dict of them
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlepad": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d0d7de",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "calotype",
}


P = ParamSpec("P")
R = TypeVar("R")


def _styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Have a function draw in the style; matplotlib reads it when a part of a chart is made."""

    @wraps(draw)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return run


@dataclass(frozen=True)
class Curve:
    """Points in their order, with the least and the greatest value of each if it was measured repeatedly."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] | None = None
    highs: Sequence[float] | None = None
    labels: Sequence[str] = ()
    """A short text for each point, such as its rate or its number of steps."""
    beyond: Sequence[tuple[float, str]] = ()
    """The x and the short text of each point whose y is infinite: a cross at the upper edge."""


@dataclass(frozen=True)
class Mark:
    """A point that is named, such as a knee."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Level:
    """A horizontal line that is named, such as a limit."""

    y: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One of several charts that share their x axis; `dots` have no line between them."""

    y_name: str
    lines: Sequence[Curve] = ()
    dots: Sequence[Curve] = ()
    levels: Sequence[Level] = ()
    y_max: float | None = None
    is_stepped: bool = False
    """Whether a value holds until the next one, such as a number of open requests."""


@dataclass(frozen=True)
class Bars:
    """One of several charts beside each other: a value for each name."""

    x_name: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Effect:
    """How a figure changes with the settings of one factor, of which the first is the base."""

    factor: str
    settings: Sequence[str]
    ratios: Sequence[float]
    lows: Sequence[float] = field(default=())
    highs: Sequence[float] = field(default=())


@_styled
def plane(
    curves: Sequence[Curve],
    *,
    title: str,
    x_name: str,
    y_name: str,
    dots: Sequence[Curve] = (),
    marks: Sequence[Mark] = (),
    levels: Sequence[Level] = (),
    log_y: bool | None = None,
    log_x: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Figure:
    """Curves over two measured quantities, such as latency against throughput, before faint `dots`.

    The y axis is logarithmic if the values span more than a factor of 20, unless `log_y` decides.
    """
    figure, axes = _figure(title)
    _scale(axes, _is_wide(curves) if log_y is None else log_y, log_x, y_range)
    for one in dots:
        axes.plot(one.xs, one.ys, "o", color=FAINT, markersize=4)
    for index, curve in enumerate(curves):
        _draw(axes, curve, index)
    for level in levels:
        _level(axes, level)
    for mark in marks:
        axes.plot([mark.x], [mark.y], "o", markersize=15, fillstyle="none", color=INK, markeredgewidth=1.4)
        axes.annotate(
            mark.text, (mark.x, mark.y), xytext=(12, -16), textcoords="offset points", weight="bold"
        )
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    _name_ends(axes, curves)
    return figure


@_styled
def over_time(panels: Sequence[Panel], *, title: str, x_name: str = "seconds from the start") -> Figure:
    """Panels above each other with one time axis."""
    figure = Figure(figsize=(SIZE_INCHES[0], 2.1 + 2.0 * len(panels)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for row, panel in enumerate(panels):
        axes = grid[row][0]
        index = 0
        for curve in panel.dots:
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(
                curve.xs, curve.ys, MARKERS[index], markersize=3.2, alpha=0.5, color=colour, label=curve.name
            )
            index += 1
        for curve in panel.lines:
            colour = COLOURS[index % len(COLOURS)]
            how = "steps-post" if panel.is_stepped else "default"
            axes.plot(curve.xs, curve.ys, color=colour, linewidth=1.8, label=curve.name, drawstyle=how)
            index += 1
        for level in panel.levels:
            _level(axes, level)
        axes.set_ylabel(panel.y_name)
        axes.set_ylim(0, panel.y_max)
        if any(curve.name != panel.y_name for curve in (*panel.dots, *panel.lines)):
            axes.legend(loc="lower right", ncols=index, bbox_to_anchor=(1, 1), borderaxespad=0.2, fontsize=9)
    grid[0][0].set_title(title)
    grid[-1][0].set_xlabel(x_name)
    return figure


@_styled
def grid(cells: Sequence[Bars | Panel], *, title: str, x_name: str) -> Figure:
    """Bars, and panels of lines over one quantity, two in a row; a name has one colour in all of them."""
    names = list(dict.fromkeys(name for cell in cells for name in _names_in(cell)))
    num_rows = math.ceil(len(cells) / 2)
    size = (1.45 * SIZE_INCHES[0], 0.75 * SIZE_INCHES[1] * num_rows + 1)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    places = list(figure.subplots(num_rows, 2, squeeze=False).flat)
    for axes, cell in zip(places, cells, strict=False):
        axes.set_title(cell.x_name if isinstance(cell, Bars) else cell.y_name, fontsize=10.5)
        if isinstance(cell, Bars):
            _bars(axes, cell, names)
            continue
        is_log = _is_wide(cell.lines)
        _scale(axes, is_log, False, None)
        for curve in cell.lines:
            _draw(axes, curve, names.index(curve.name))
        axes.set_xlabel(x_name)
        if not is_log:
            axes.set_ylim(0, cell.y_max)
    for axes in places[len(cells) :]:
        axes.remove()
    labelled = [axes.get_legend_handles_labels() for axes in places[: len(cells)]]
    shown = {name: handle for handles, found in labelled for handle, name in zip(handles, found, strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(6, len(shown) or 1))
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
    return figure


@_styled
def stacked(bars: Mapping[str, Mapping[str, float]], *, title: str, x_name: str, unit: str = "s") -> Figure:
    """A horizontal bar for each entry, of parts by name; each part that is wide enough shows its value."""
    figure, axes = _figure(title, height=1.9 + 0.62 * len(bars))
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    most = max((sum(bar.values()) for bar in bars.values()), default=1.0) or 1.0
    places = list(range(len(bars)))[::-1]
    starts = [0.0] * len(bars)
    for index, part in enumerate(parts):
        widths = [bar.get(part, 0.0) for bar in bars.values()]
        colour = COLOURS[index % len(COLOURS)]
        axes.barh(places, widths, left=starts, height=0.62, color=colour, label=part, edgecolor="white")
        for place, start, width in zip(places, starts, widths, strict=True):
            if width > 0.06 * most:
                axes.text(
                    *(start + width / 2, place, _short(width)), ha="center", va="center",
                    color=_ink_on(colour), fontsize=9,
                )  # fmt: skip
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, total in zip(places, starts, strict=True):
        axes.text(total + 0.01 * most, place, f"{_short(total)} {unit}", va="center", weight="bold")
    axes.set_yticks(places, list(bars))
    axes.set_xlabel(x_name)
    axes.set_xlim(0, 1.12 * most)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=min(8, len(parts)), fontsize=9)
    return figure


@_styled
def effects(found: Sequence[Effect], *, title: str, x_name: str) -> Figure:
    """How many times a figure changes with each factor: a row of points for each, on a logarithmic axis."""
    figure, axes = _figure(title, height=1.6 + 0.7 * len(found))
    axes.set_xscale("log", base=2)
    axes.axvline(1, color=FAINT, linewidth=1.2)
    for place, effect in zip(range(len(found))[::-1], found, strict=True):
        colour = COLOURS[0]
        axes.plot(
            [min(effect.ratios), max(effect.ratios)], [place, place], color=colour, linewidth=1.4, alpha=0.5
        )
        for number, (setting, ratio) in enumerate(zip(effect.settings, effect.ratios, strict=True)):
            if effect.lows and effect.highs:
                axes.plot(
                    [effect.lows[number], effect.highs[number]], [place, place], color=colour, linewidth=5,
                    alpha=0.25, solid_capstyle="round",
                )  # fmt: skip
            axes.plot([ratio], [place], "o", color=colour, markersize=6)
            above = number % 2 == 0
            axes.annotate(
                setting, (ratio, place), xytext=(0, 8 if above else -9), textcoords="offset points",
                ha="center", va="bottom" if above else "top", fontsize=8.5,
            )  # fmt: skip
    axes.set_yticks(range(len(found))[::-1], [one.factor for one in found])
    axes.set_ylim(-0.7, len(found) - 0.3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.set_xlabel(x_name)
    axes.grid(visible=False, axis="y")
    return figure


@_styled
def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write the figure as `NAME.png` and `NAME.svg`; the same series give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    figure.savefig(paths[0], dpi=DPI, facecolor="white", metadata={"Software": None})
    figure.savefig(paths[1], facecolor="white", metadata={"Date": None})
    return paths


def smoothed(xs: Sequence[float], ys: Sequence[float], *, window: float, share: float) -> Curve:
    """A moving quantile of points in the order of `xs`, at the middle of each window that has one.

    Where it is infinite, the curve has a gap.
    """
    name = f"p{100 * share:.0f} of {window:g} s"
    found_xs, found_ys = [], []
    start, end = (xs[0], xs[-1]) if xs else (0.0, 0.0)
    step = window / 4
    for number in range(max(0, math.floor((end - start - window) / step) + 1)):
        left = start + number * step
        inside = sorted(y for x, y in zip(xs, ys, strict=True) if left <= x < left + window)
        if inside:
            found_xs.append(left + window / 2)
            value = inside[max(0, math.ceil(share * len(inside)) - 1)]
            found_ys.append(value if math.isfinite(value) else math.nan)
    return Curve(name, found_xs, found_ys)


def _figure(title: str, height: float = SIZE_INCHES[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(SIZE_INCHES[0], height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _is_wide(curves: Sequence[Curve]) -> bool:
    """Whether the values span more than a factor of 20, so that a logarithmic axis shows them better."""
    values = [y for curve in curves for y in curve.ys]
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def _names_in(cell: Bars | Panel) -> list[str]:
    return list(cell.values) if isinstance(cell, Bars) else [curve.name for curve in cell.lines]


def _bars(axes: Axes, bars: Bars, names: Sequence[str]) -> None:
    places = list(range(len(bars.values)))[::-1]
    colours = [COLOURS[names.index(name) % len(COLOURS)] for name in bars.values]
    axes.barh(places, list(bars.values.values()), height=0.62, color=colours)
    most = max(bars.values.values(), default=1.0) or 1.0
    for place, value in zip(places, bars.values.values(), strict=True):
        axes.text(value + 0.01 * most, place, f"{value:.2f}", va="center", weight="bold")
    axes.set_yticks(places, list(bars.values))
    axes.set_xlim(0, 1.14 * most)
    axes.grid(visible=False, axis="y")


def _scale(axes: Axes, is_log: bool, log_x: bool, y_range: tuple[float, float] | None) -> None:
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(plain)
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if _leads(value) else ""))
    if y_range is not None:
        axes.set_ylim(*y_range)


def _draw(axes: Axes, curve: Curve, index: int) -> None:
    colour = COLOURS[index % len(COLOURS)]
    dash = DASHES[index // len(COLOURS) % len(DASHES)]
    axes.plot(
        curve.xs, curve.ys, dash, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=5.5,
        linewidth=1.8, label=curve.name,
    )  # fmt: skip
    if curve.lows is not None and curve.highs is not None:
        below = [y - low for y, low in zip(curve.ys, curve.lows, strict=True)]
        above = [high - y for y, high in zip(curve.ys, curve.highs, strict=True)]
        axes.errorbar(
            curve.xs, curve.ys, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=1.2, capsize=3,
            alpha=0.7,
        )  # fmt: skip
    for x, y, label in zip(curve.xs, curve.ys, curve.labels, strict=False):
        axes.annotate(
            label, (x, y), xytext=(5, 6), textcoords="offset points", fontsize=8, color=colour, alpha=0.9
        )
    for x, label in curve.beyond:
        edge = axes.get_xaxis_transform()  # the y is a share of the height
        axes.plot([x], [0.975], "x", transform=edge, color=colour, markersize=8, markeredgewidth=2.0)
        axes.annotate(
            label if curve.xs else f"{curve.name}: {label}", (x, 0.975), xycoords=edge, xytext=(7, -5),
            textcoords="offset points", fontsize=8, color=colour, alpha=0.9,
        )  # fmt: skip


def _level(axes: Axes, level: Level) -> None:
    axes.axhline(level.y, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        level.text, (0, level.y), xycoords=("axes fraction", "data"), xytext=(4, 4),
        textcoords="offset points", fontsize=8.5,
    )  # fmt: skip


def _name_ends(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write the name of each curve beside its last point, moved apart where two would overlap."""
    ends = sorted(
        (axes.transData.transform((curve.xs[-1], curve.ys[-1]))[1], index)
        for index, curve in enumerate(curves)
        if len(curve.xs)
    )
    heights = _apart([height for height, _ in ends], least=13 * DPI / 72)
    for height, (own, index) in zip(heights, ends, strict=True):
        curve = curves[index]
        axes.annotate(
            curve.name, (curve.xs[-1], curve.ys[-1]), xytext=(9, (height - own) * 72 / DPI - 3),
            textcoords="offset points", color=COLOURS[index % len(COLOURS)], weight="bold", fontsize=9,
            annotation_clip=False,
        )  # fmt: skip
    axes.margins(x=0.04)


def _apart(heights: Sequence[float], *, least: float) -> list[float]:
    """The heights in their order, raised where one is less than `least` above the one before."""
    found = list(heights)
    for lower, upper in pairwise(range(len(found))):
        found[upper] = max(found[upper], found[lower] + least)
    return found


def _leads(value: float) -> bool:
    """Whether the first digit is 2 or 5, which are labelled between the powers of ten."""
    return f"{value:e}"[0] in "25"


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _ink_on(colour: str) -> Any:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else INK
