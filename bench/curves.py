"""The curves behind the figures: seconds of a step by rows, and every strategy's results as the load grows.

Owns the content of `bench-output/curves.json`. Steps are measured, strategies are simulated on them. It does
not know how a curve is drawn.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.arrivals import StepTable, Work
from bench.figures import quantile
from bench.simulated_strategies import Strategy, continuous_fifo, keyed_dynamic, ours, with_deadlines
from bench.simulator import in_time_share, served

LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SEED = 1
KEYED = "keyed dynamic batching"
FIFO = "first come, first served"
OURS = "calotype"
STRATEGIES: Mapping[str, tuple[Strategy, Strategy | None]] = {
    KEYED: (keyed_dynamic(0.0), None),
    FIFO: (continuous_fifo, with_deadlines(continuous_fifo)),
    OURS: (ours, with_deadlines(ours)),
}
"""By name: the strategy without deadlines, and with three times the solo time as one, if it uses it."""


def measure(work: Work, step_tables: Mapping[int, StepTable], num_requests: int) -> dict[str, Any]:
    """All curves; a list has one value for each load, or for each number of rows from 1."""
    traces = {
        name: [served(work, strategy, load, SEED, num_requests) for load in LOADS]
        for name, (strategy, _) in STRATEGIES.items()
    }
    in_time_with_deadlines = {
        name: [in_time_share(served(work, strategy, load, SEED, num_requests)) for load in LOADS]
        for name, (_, strategy) in STRATEGIES.items()
        if strategy is not None
    }

    def each(measure: Callable[[list[Any]], float]) -> dict[str, list[float]]:
        return {name: [measure(trace) for trace in found] for name, found in traces.items()}

    return {
        "step_seconds": {f"{side}²": _in_order(one) for side, one in step_tables.items()},
        "loads": LOADS,
        "p50_seconds": each(lambda trace: quantile([one.latency_seconds for one in trace], 0.5)),
        "p95_seconds": each(lambda trace: quantile([one.latency_seconds for one in trace], 0.95)),
        "in_time": each(in_time_share),
        "in_time_with_deadlines": in_time_with_deadlines,
    }


def _in_order(step_table: StepTable) -> list[float]:
    return [step_table.seconds[num_rows] for num_rows in sorted(step_table.seconds)]


def write(curves: Mapping[str, Any], path: Path) -> None:
    """Write the curves as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(curves, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
