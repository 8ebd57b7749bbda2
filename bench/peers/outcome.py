"""The figures of a comparison, and the Markdown table and the curves that stand beside them.

It reads runs, and starts nothing. A peer counts at the settings that are best for the figure at hand: of its
runs under a load, each figure takes the better one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.charts import Curve
from bench.figures import Figure, figure_of
from bench.peers.arms import JUDGED_LOAD, Comparison, phase_of, pooled
from bench.peers.load import Run
from bench.peers.peer import OURS, Settings

P95_BAR, GOODPUT_BAR = 2.0, 4.0


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
            [rate],
            None,
            bare_per_second,
            f"images/s with all requests at once, {chosen}; the limit is plain diffusers in two processes",
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
            f"of {len(run.ended)} requests, without an image after one worker was killed; "
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
    [ours] = pooled(comparison, OURS, share)
    fastest = min(theirs, key=lambda run: run.p95_seconds)
    yield figure_of(
        f"p95_vs_best_peer{suffix}",
        _by_trace(comparison, share, fastest, lambda peer, we: peer.p95_seconds / we.p95_seconds),
        P95_BAR if judged else None,
        None,
        f"{fastest.arm} ({_settings(fastest)}) {fastest.p95_seconds:.2f} s, ours {ours.p95_seconds:.2f} s "
        f"at {ours.rate:.2f}/s",
        value=fastest.p95_seconds / ours.p95_seconds,
    )
    most = max(theirs, key=lambda run: run.in_time(solo))
    floor = 1 / len(most.ended)
    yield figure_of(
        f"goodput_vs_best_peer{suffix}",
        _by_trace(
            comparison,
            share,
            most,
            lambda peer, we: we.in_time(solo) / max(peer.in_time(solo), 1 / len(peer.ended)),
        ),
        GOODPUT_BAR if judged else None,
        1 / max(most.in_time(solo), floor),
        f"in time: ours {ours.in_time(solo):.2f}, {most.arm} ({_settings(most)}) {most.in_time(solo):.2f}; "
        f"none in time counts as one",
        value=ours.in_time(solo) / max(most.in_time(solo), floor),
    )
    calmest = min(theirs, key=lambda run: run.p95_slowdown(solo))
    yield figure_of(
        f"slowdown_vs_best_peer{suffix}",
        [calmest.p95_slowdown(solo) / ours.p95_slowdown(solo)],
        None,
        None,
        f"p95 of latency by time alone: {calmest.arm} {calmest.p95_slowdown(solo):.1f}, "
        f"ours {ours.p95_slowdown(solo):.1f}",
    )


def _peer_runs(comparison: Comparison, share: float) -> list[Run]:
    names = {run.arm for run in comparison.runs if run.phase == phase_of(share)} - {OURS}
    return [run for name in sorted(names) for run in pooled(comparison, name, share)]


def _by_trace(
    comparison: Comparison, share: float, peer: Run, ratio: Callable[[Run, Run], float]
) -> list[float]:
    ours = comparison.of(phase_of(share), OURS)
    theirs = [run for run in comparison.of(phase_of(share), peer.arm) if run.settings == peer.settings]
    return [ratio(one, other) for one, other in zip(theirs, ours, strict=True)]


def table_of(
    comparison: Comparison, capacities: Mapping[str, float], bare_per_second: float
) -> Iterator[str]:
    """A line for each system and setting: capacity, then p95, p95 slowdown and share in time at each load."""
    loads = comparison.amounts.loads
    heads = "".join(f" {phase_of(share)}: p95 s | slowdown | in time |" for share in loads)
    yield f"| system | settings | images/s |{heads} lost by a kill |"
    yield "|---" * (4 + 3 * len(loads)) + "|"
    empty = " |" * (3 * len(loads) + 1)
    yield f"| plain diffusers, two processes | at most 16 rows | {bare_per_second:.2f} |{empty}"
    for name, rate in sorted(capacities.items(), key=lambda one: -one[1]):
        lost = [f"{run.num_lost} of {len(run.ended)}" for run in comparison.of("kill", name)]
        end = f" {lost[0] if lost else ''} |"
        rows = _loads_of(comparison, name)
        if not rows:
            settings = comparison.chosen.get(name, {}).get("capacity", "as shipped")
            yield f"| {name} | {settings} | {rate:.2f} |{' |' * 3 * len(loads)}{end}"
        for settings, cells in rows.items():
            yield f"| {name} | {settings} | {rate:.2f} |{cells}{end}"
    for name, reason in comparison.left_out.items():
        yield f"\n{name} is left out: {reason.splitlines()[0]}"


def _loads_of(comparison: Comparison, name: str) -> dict[str, str]:
    """The cells of each of its settings, over all loads."""
    rows: dict[str, str] = {}
    for share in comparison.amounts.loads:
        for run in pooled(comparison, name, share):
            solo = comparison.solo
            cells = f" {run.p95_seconds:.2f} | {run.p95_slowdown(solo):.1f} | {run.in_time(solo):.2f} |"
            rows[_settings(run)] = rows.get(_settings(run), "") + cells
    return rows


def _settings(run: Run) -> str:
    if "max_batch" not in run.settings:
        return "as shipped"
    return str(Settings(**run.settings))


def _id(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def curves_of(comparison: Comparison) -> list[Curve]:
    """The p95 slowdown at each load, a curve a system, each at its best settings there.

    Points without an end (more than a twentieth lost) are left out.
    """
    loads = comparison.amounts.loads
    names = [OURS, *sorted({run.arm for run in comparison.runs if run.phase == phase_of(loads[0])} - {OURS})]
    curves = []
    for name in names:
        points = []
        for share in loads:
            found = [run.p95_slowdown(comparison.solo) for run in pooled(comparison, name, share)]
            if found and math.isfinite(min(found)):
                points.append((100 * share, min(found)))
        if points:
            curves.append(Curve(name, [x for x, _ in points], [y for _, y in points]))
    return curves


def best_peers(capacities: Mapping[str, float], num: int) -> Sequence[str]:
    """The names of the peers with the highest capacity."""
    return sorted((name for name in capacities if name != OURS), key=lambda name: -capacities[name])[:num]
