"""All phases of the comparison one after the other, and what is written while they run.

It knows neither the peers' packages nor how a figure is made.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.charts import grid, save
from bench.configuration import ROOT
from bench.figures import Figure
from bench.parts import output_of
from bench.peers.arms import Arms
from bench.peers.comparison import JUDGED_LOAD, SHORT, SIDE, WHOLE, Amounts, Comparison
from bench.peers.load import Load, balanced_requests
from bench.peers.outcome import cells_of, figures_of, table_of
from bench.peers.peer import NUM_PROCESSES, PEERS
from bench.peers.phases import (
    SEEDS,
    bare_rate,
    best_peers,
    choose_size,
    measure_capacities,
    measure_kills,
    measure_loads,
    references_of,
    solo_of,
    start_all,
    tune,
)
from bench.peers.simulated import simulated
from engine.request import GenerationRequest

FILE = "peers.json"
PACKAGES = ROOT / "build" / "peers"
NAMES = [peer.name for peer in PEERS]
NUM_REFERENCES = 5
"""Images of each trace that are compared with what the bare pipeline draws."""


@contextmanager
def pinned(num_cores: int = NUM_PROCESSES) -> Iterator[list[int]]:
    """Keep this thread and all that it starts on the first cores while the body runs; yield their numbers.

    Each peer has a process of one thread for each of them, and our workers share what they find. Raises
    `RuntimeError` if there are fewer.
    """
    before = os.sched_getaffinity(0)
    cores = sorted(before)[:num_cores]
    if len(cores) < num_cores:
        raise RuntimeError(f"the comparison needs {num_cores} cores, and this process may use {len(cores)}")
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def measure(
    *,
    is_short: bool,
    only: Sequence[str] = NAMES,
    packages: Path = PACKAGES,
    folder: Path | None = None,
) -> Iterator[Figure]:
    """Measure all phases; every run is written beside the figures after each phase."""
    folder = folder or output_of(FILE, only, NAMES, is_small=is_short).parent
    amounts = SHORT if is_short else WHOLE
    begun_at = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="peers") as services,
        pinned() as cores,
        ExitStack() as stack,
    ):
        comparison = Comparison(
            Load(references_of(compared(amounts))),
            solo_of(SIDE, amounts.solo_repeats),
            amounts,
            packages,
            Path(services),
        )
        for peer in PEERS:
            if peer.name not in only:
                comparison.leave_out(peer.name, "not asked for")
        bare = bare_rate(balanced_requests(amounts.num_saturated, SIDE, SEEDS[0]), cores)

        def note(what: str) -> None:
            print(f"    {time.monotonic() - begun_at:5.0f} s: {what}", flush=True)
            write_runs(comparison, bare, cores, folder)

        note(f"plain diffusers draws {bare:.2f} images/s; batch sizes")
        for peer in comparison.peers():
            choose_size(comparison, peer)
        note("images a second of all")
        arms = Arms(comparison, stack)
        start_all(comparison, arms)
        capacities = measure_capacities(comparison, arms)
        best = best_peers(capacities, amounts.num_peers)
        if best and capacities[best[0]] > 0:
            note("settings at the judged load")
            _tune(comparison, arms, best, JUDGED_LOAD * capacities[best[0]])
            note("arms in turns")
            measure_loads(comparison, arms, best, capacities)
            note("kills")
            measure_kills(comparison, arms, capacities[best[0]])
        note("done")
    yield from figures_of(comparison, capacities, bare)
    policy = list(simulated(is_short=is_short))
    yield from policy
    text = "\n".join(table_of(comparison, capacities, bare, policy))
    (folder / "peers.md").write_text(text + "\n", encoding="utf-8")
    figure = grid(
        cells_of(comparison, capacities, bare),
        title="The same model on the same machine, each system at its best settings for each figure",
        x_name="load, % of the best peer's images/s at saturation",
    )
    save(figure, folder, "peers")
    print(text)


def compared(amounts: Amounts) -> list[GenerationRequest]:
    """The first requests of every trace, whose images are compared with the bare pipeline's."""
    seeds = sorted({*amounts.seeds, *SEEDS})
    return [one for seed in seeds for one in balanced_requests(NUM_REFERENCES, SIDE, seed)]


def _tune(comparison: Comparison, arms: Arms, best: Sequence[str], rate: float) -> None:
    """Tune the best peers, and start them with what was chosen."""
    solo = comparison.solo
    for peer in (one for one in comparison.peers() if one.name in best):
        tune(
            comparison,
            peer,
            rate,
            {
                "p95": lambda run: (run.p95_seconds,),
                "goodput": lambda run: (-run.in_time(solo), run.p95_seconds),
            },
        )
        for settings in dict.fromkeys(comparison.chosen[peer.name].values()):
            arms.add(peer, settings)


def write_runs(comparison: Comparison, bare_per_second: float, cores: Sequence[int], folder: Path) -> None:
    """Every run so far with every request, the settings that were chosen, and what was left out."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "cores": list(cores),
        "bare_images_per_second": round(bare_per_second, 3),
        "solo_seconds": [
            {"num_inference_steps": steps, "guidance_scale": scale, "seconds": round(seconds, 4)}
            for (steps, scale), seconds in comparison.solo.seconds.items()
        ],
        "chosen": {
            name: {what: vars(settings) for what, settings in each.items()}
            for name, each in comparison.chosen.items()
        },
        "dropped": comparison.dropped,
        "left_out": comparison.left_out,
        "runs": [run.as_json() for run in comparison.runs],
    }
    (folder / "peers-runs.json").write_text(
        json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
