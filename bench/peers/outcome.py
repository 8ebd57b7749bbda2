"""The figures of a comparison, and the Markdown table and the charts that stand beside them.

It reads runs, and starts nothing. A peer counts at the settings that are best for the figure at hand: of its
runs under a load, each figure takes the better one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.charts import Bars, Curve, Panel
from bench.figures import Figure, figure_of
from bench.latency import p95
from bench.peers.comparison import JUDGED_LOAD, Comparison, phase_of
from bench.peers.load import Run, joined
from bench.peers.peer import OURS, PEERS, Settings
from bench.peers.simulated import LOAD as SIMULATED_LOAD

P95_BAR, GOODPUT_BAR = 2.0, 4.0
BARE = "plain diffusers, two processes"
LIMITS = (
    f"The peers with the highest capacity alone are tuned, at {phase_of(JUDGED_LOAD)} of the best one's, for "
    "p95 and for the share in time: not for slowdown, nor for the other loads. Others run at the settings "
    f"of their own capacity, and at loads other than {phase_of(JUDGED_LOAD)} only if they can keep up."
)


def figures_of(
    comparison: Comparison, capacities: Mapping[str, float], bare_per_second: float
) -> Iterator[Figure]:
    """Ours beside the best peer at every load, then capacities and lost requests."""
    for share in comparison.amounts.loads:
        yield from _beside_best(comparison, share)
    peers = {name: rate for name, rate in capacities.items() if name != OURS}
    for name, rate in capacities.items():
        chosen = comparison.chosen.get(name, {}).get("capacity", "as shipped")
        yield figure_of(
            f"capacity_{_id(name)}",
            [run.throughput for run in comparison.of("capacity", name)] or [rate],
            None,
            bare_per_second,
            f"images/s with all requests at once, {chosen}; the limit is plain diffusers in two processes",
            value=rate,
        )
    if peers and OURS in capacities:
        best = max(peers, key=lambda name: peers[name])
        yield figure_of(
            "capacity_vs_best_peer",
            [capacities[OURS] / peers[best]],
            None,
            bare_per_second / peers[best],
            f"ours {capacities[OURS]:.2f} images/s, {best} {peers[best]:.2f}",
        )
    for run in (run for run in comparison.runs if run.phase == "kill"):
        yield figure_of(
            f"lost_{_id(run.arm)}",
            [run.num_lost],
            None,
            0.0,
            f"of {len(run.ended)} requests, without an image after one worker was killed, once; "
            f"p95 {run.p95_seconds:.1f} s",
            is_at_most=True,
        )


def _beside_best(comparison: Comparison, share: float) -> Iterator[Figure]:
    """Ratios of p95 and of the share in time at a load; each sample is a trace."""
    solo = comparison.solo
    judged = share == JUDGED_LOAD
    suffix = "" if judged else f"_{100 * share:.0f}"
    theirs = _peer_runs(comparison, share)
    if not theirs:
        return
    is_barred, missing = judged and not missing_peers(comparison), _without(comparison)
    fastest = min(theirs, key=lambda run: run.p95_seconds)
    pairs, ours = _beside(comparison, share, fastest, lambda run: -run.p95_seconds)
    yield figure_of(
        f"p95_vs_best_peer{suffix}",
        [peer.p95_seconds / we.p95_seconds for peer, we in pairs],
        P95_BAR if is_barred else None,
        fastest.p95_seconds / p95([solo.of(one.arrival.request) for one in ours.counted]),
        f"{_named(fastest)} {fastest.p95_seconds:.2f} s, ours {ours.p95_seconds:.2f} s at {ours.rate:.2f}/s; "
        f"the limit is the peer's by that of requests that are alone{missing}",
        value=fastest.p95_seconds / ours.p95_seconds,
    )
    most = max(theirs, key=lambda run: run.in_time(solo))
    pairs, ours = _beside(comparison, share, most, lambda run: run.in_time(solo))
    floor = 1 / len(most.counted)
    yield figure_of(
        f"goodput_vs_best_peer{suffix}",
        [we.in_time(solo) / max(peer.in_time(solo), 1 / len(peer.counted)) for peer, we in pairs],
        GOODPUT_BAR if is_barred else None,
        1 / max(most.in_time(solo), floor),
        f"in time: ours ({_settings(ours)}) {ours.in_time(solo):.2f}, "
        f"{_named(most)} {most.in_time(solo):.2f}; "
        f"none in time counts as one{missing}",
        value=ours.in_time(solo) / max(most.in_time(solo), floor),
    )
    calmest = min(theirs, key=lambda run: run.p95_slowdown(solo))
    _, ours = _beside(comparison, share, calmest, lambda run: -run.p95_slowdown(solo))
    yield figure_of(
        f"slowdown_vs_best_peer{suffix}",
        [calmest.p95_slowdown(solo) / ours.p95_slowdown(solo)],
        None,
        None,
        f"p95 of latency by time alone: {_named(calmest)} {calmest.p95_slowdown(solo):.1f}, "
        f"ours {ours.p95_slowdown(solo):.1f}; no settings are tuned for it{missing}",
    )


def missing_peers(comparison: Comparison) -> list[str]:
    """The peers that are left out: one of them may be the best."""
    return [peer.name for peer in PEERS if peer.name in comparison.left_out]


def _without(comparison: Comparison) -> str:
    dropped = [f"{name}, {settings}" for name, each in comparison.dropped.items() for settings in each]
    what = f"; dropped: {'; '.join(dropped)}" if dropped else ""
    if missing := missing_peers(comparison):
        return f"; not judged without {', '.join(missing)}{what}"
    return f"; settings tuned at {phase_of(JUDGED_LOAD)} for p95 and the share in time{what}"


def _named(run: Run) -> str:
    lost = f", {run.num_lost} of {len(run.ended)} lost" if run.num_lost else ""
    return f"{run.arm} ({_settings(run)}{lost})"


def _peer_runs(comparison: Comparison, share: float) -> list[Run]:
    names = {run.arm for run in comparison.runs if run.phase == phase_of(share)} - {OURS}
    return [run for name in sorted(names) for run in comparison.pooled(name, share)]


def _beside(
    comparison: Comparison, share: float, peer: Run, worth: Callable[[Run], float]
) -> tuple[list[tuple[Run, Run]], Run]:
    """The peer's runs and ours under the same traces, and ours as one run, at the settings worth most.

    A peer that is not tuned has the first trace alone.
    """
    theirs = [run for run in comparison.of(phase_of(share), peer.arm) if run.settings == peer.settings]
    ours: dict[str, list[Run]] = {}
    for run in comparison.of(phase_of(share), OURS):
        ours.setdefault(_settings(run), []).append(run)
    pairs = [list(zip(theirs, runs, strict=False)) for runs in ours.values()]
    return max(((each, joined([we for _, we in each])) for each in pairs), key=lambda one: worth(one[1]))


def table_of(
    comparison: Comparison,
    capacities: Mapping[str, float],
    bare_per_second: float,
    simulated: Sequence[Figure] = (),
) -> Iterator[str]:
    """A line for each system and setting: capacity, then p95, p95 slowdown and share in time at each load.

    The `simulated` figures have a line of ratios to ours. Below stand the limits of the comparison, and what
    was left out.
    """
    loads = comparison.amounts.loads
    heads = "".join(f" {phase_of(share)}: p95 s | slowdown | in time |" for share in loads)
    yield f"| system | settings | images/s |{heads} lost by a kill |"
    yield "|---" * (4 + 3 * len(loads)) + "|"
    empty = " |" * (3 * len(loads) + 1)
    yield f"| {BARE} | at most 16 rows | {bare_per_second:.2f} |{empty}"
    for name, rate in sorted(capacities.items(), key=lambda one: -one[1]):
        kills = {_settings(run): f"{run.num_lost} of {len(run.ended)}" for run in comparison.of("kill", name)}
        best = str(comparison.chosen.get(name, {}).get("capacity", "as shipped"))
        for settings, cells in (_loads_of(comparison, name) or {best: " |" * 3 * len(loads)}).items():
            made = f"{rate:.2f}" if settings == best else ""
            yield f"| {name} | {settings} | {made} |{cells} {kills.get(settings, '')} |"
        if best not in _loads_of(comparison, name) and _loads_of(comparison, name):
            yield f"| {name} | {best} | {rate:.2f} |{empty}"
    if simulated:
        yield _simulated_line(simulated, loads)
    num_due, num_traces = comparison.amounts.num_due, len(comparison.amounts.seeds)
    yield (
        f"\n{LIMITS} A trace of {num_due} requests a load; ours and the tuned peers have {num_traces} at "
        f"{phase_of(JUDGED_LOAD)}. The first fifth of each is not counted. One kill each."
    )
    if simulated:
        yield (
            f"\nThe policy of Aquiles-Image is simulated, at {SIMULATED_LOAD:.0%} load alone and on the "
            f"published step seconds of another device: its ratios are to ours there. {simulated[0].reason}."
        )
    for name, reason in comparison.left_out.items():
        yield f"\n{name} is left out: {reason.splitlines()[0]}"
    for name, each in comparison.dropped.items():
        for settings, reason in each.items():
            yield f"\n{name}, {settings}, is dropped: {reason.splitlines()[0]}"


def _simulated_line(simulated: Sequence[Figure], loads: Sequence[float]) -> str:
    """Its p95 and its share in time as multiples of ours, at the load of the simulation."""
    ratios = {one.figure: one.value for one in simulated}
    p95, in_time = ratios["aquiles_policy_p95"], 1 / ratios["aquiles_policy_goodput"]
    cells = "".join(
        f" {p95:.2f} x ours | | {in_time:.2f} x ours |" if share == SIMULATED_LOAD else " |" * 3
        for share in loads
    )
    return f"| Aquiles-Image's policy | simulated, the best of its settings | |{cells} |"


def _loads_of(comparison: Comparison, name: str) -> dict[str, str]:
    """The cells of each of its settings, over all loads; empty ones where it was not measured."""
    solo = comparison.solo
    found: dict[str, dict[float, str]] = {}
    for share in comparison.amounts.loads:
        for run in comparison.pooled(name, share):
            cells = f" {run.p95_seconds:.2f} | {run.p95_slowdown(solo):.1f} | {run.in_time(solo):.2f} |"
            found.setdefault(_settings(run), {})[share] = cells
    return {
        settings: "".join(cells.get(share, " |" * 3) for share in comparison.amounts.loads)
        for settings, cells in found.items()
    }


def _settings(run: Run) -> str:
    if "max_batch" not in run.settings:
        return str(run.settings.get("settings", "as shipped"))
    return str(Settings(**run.settings))


def _id(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def cells_of(
    comparison: Comparison, capacities: Mapping[str, float], bare_per_second: float
) -> list[Bars | Panel]:
    """Four charts: images a second at saturation, then p95, p95 slowdown and share in time at each load."""
    solo = comparison.solo
    names = [OURS, *sorted(capacities.keys() - {OURS})]
    made = {name: capacities[name] for name in names if name in capacities}
    return [
        Bars("images/s at saturation", {**made, BARE: bare_per_second}),
        Panel("p95 of latency, seconds", curves_of(comparison, lambda run: run.p95_seconds)),
        Panel("p95 of latency ÷ the time alone", curves_of(comparison, lambda run: run.p95_slowdown(solo))),
        Panel(
            "share within three times the time alone",
            curves_of(comparison, lambda run: run.in_time(solo), best=max),
            y_max=1.05,
        ),
    ]


def curves_of(
    comparison: Comparison,
    value_of: Callable[[Run], float],
    best: Callable[[list[float]], float] = min,
) -> list[Curve]:
    """The best value of each system's settings at each load, ours first.

    A value without an end (more than a twentieth lost) is beyond the chart.
    """
    loads = comparison.amounts.loads
    phases = {phase_of(share) for share in loads}
    names = [OURS, *sorted({run.arm for run in comparison.runs if run.phase in phases} - {OURS})]
    curves = []
    for name in names:
        found = [
            (100 * share, best([value_of(run) for run in runs]))
            for share in loads
            if (runs := comparison.pooled(name, share))
        ]
        ends = [(x, y) for x, y in found if math.isfinite(y)]
        beyond = [(x, "missed") for x, y in found if not math.isfinite(y)]
        if found:
            curves.append(Curve(name, [x for x, _ in ends], [y for _, y in ends], beyond=beyond))
    return curves
