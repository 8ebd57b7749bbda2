"""Measures how long a request waits in the engine for its first step, in ticks of that moment.

The engine runs on its own thread, as in a worker, with a few long generations that leave rows free. Requests
whose prompts are encoded already arrive at random moments. One that arrives in the middle of a tick must wait
for the end of that tick, so that the mean is at least half a tick and the largest is at least one.
"""

import bisect
import random
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.exactness import load
from bench.figures import Figure, figure_of, quantile
from bench.workload import MODEL
from engine.engine import Engine
from engine.generation import Handle
from engine.loading.load import LoadedModels
from engine.request import GenerationRequest

SIDE, NUM_COMPANIONS, COMPANION_STEPS, JOINING_STEPS = 128, 3, 100, 2
MAX_PAUSE_SECONDS = 0.3
SHARE = 0.95


@dataclass(frozen=True)
class Amounts:
    """How many requests arrive in each run, and how many runs there are."""

    num_runs: int = 3
    num_arrivals: int = 100


WHOLE, SHORT = Amounts(), Amounts(num_runs=2, num_arrivals=6)


@dataclass(frozen=True)
class Joined:
    """How long a request waited for its first step, in ticks of that moment and in whole step batches."""

    delay_ticks: float
    num_ticks_waited: int


class RecordedEngine(Engine):
    """An engine that records when each tick began."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tick_starts: list[float] = []

    def tick(self) -> None:
        """Run one tick."""
        self.tick_starts.append(time.monotonic())
        super().tick()


def measure(*, is_short: bool) -> Iterator[Figure]:
    """The 95th percentile of the wait, in ticks."""
    amounts = SHORT if is_short else WHOLE
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    loaded = load()
    yield figure([joined(loaded, seed, amounts.num_arrivals) for seed in range(amounts.num_runs)])


def figure(runs: Sequence[Sequence[Joined]]) -> Figure:
    """The figure of some runs."""
    together = [one for run in runs for one in run]
    delays = sorted(one.delay_ticks for one in together)
    batches = statistics.mean(one.num_ticks_waited for one in together)
    return figure_of(
        "join_delay_ticks",
        [quantile([one.delay_ticks for one in run], SHARE) for run in runs],
        1.1,
        SHARE,
        f"the 95th percentile; mean {statistics.mean(delays):.2f}, most {delays[-1]:.2f}, "
        f"{batches:.2f} step batches, of {len(delays)} requests beside {NUM_COMPANIONS} others",
        value=quantile(delays, SHARE),
        is_at_most=True,
    )


def joined(loaded: LoadedModels, seed: int, num_arrivals: int) -> list[Joined]:
    """Let so many requests arrive one by one, each after the one before has ended."""
    rng = random.Random(seed)
    engine = RecordedEngine(loaded.models, loaded.row_limits, determinism=loaded.determinism)
    companion = GenerationRequest(
        MODEL, "a red heart", SIDE, SIDE, COMPANION_STEPS, 1.0, seed=seed, account="bench"
    )
    joining = replace(companion, num_inference_steps=JOINING_STEPS)
    engine.start()
    companions: list[Handle] = []
    found = []
    try:
        engine.submit(joining).future.result()  # from now on its prompt is encoded
        for _ in range(num_arrivals):
            companions = [one for one in companions if not one.future.done()]
            companions += [engine.submit(companion) for _ in range(NUM_COMPANIONS - len(companions))]
            time.sleep(rng.uniform(0.05, MAX_PAUSE_SECONDS))
            arrived_at = time.monotonic()
            timings = engine.submit(joining).future.result().timings
            seconds = tick_seconds(engine.tick_starts, arrived_at)
            found.append(Joined(timings.waiting_seconds / seconds, timings.num_ticks_waited))
    finally:
        for one in companions:
            one.cancel()
        engine.stop()
    return found


def tick_seconds(starts: Sequence[float], at: float) -> float:
    """The seconds of the tick that ran at the instant `at`, from its start to the next one's."""
    following = bisect.bisect(starts, at)
    return starts[following] - starts[following - 1]
