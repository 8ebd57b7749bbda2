"""The shipped model for the engine's benchmark: loaded once, profiled and capped as in a worker.

It does not know what is measured.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

from bench import simulator
from bench.amounts import Amounts
from bench.arrivals import StepTable, Work
from bench.bare import BareModel
from bench.latency import Solo, measure_solo
from bench.strategies import Continuous
from bench.workload import MODEL
from catalogue.profile import Profile
from engine.loading.load import LoadedModels, ModelSpec, load_models
from engine.policy.buckets import Buckets, at
from engine.policy.profiles import EngineProfiles
from engine.self_test.measurement import Measurement

FOLDER = Path(__file__).resolve().parents[1] / "models" / MODEL
ROW_LIMITS = {128 * 128: 16, 192 * 192: 8}
SIDES = (128, 192)


@dataclass(frozen=True)
class Bench:
    """The shipped model, loaded once, with its step costs and the amounts to measure."""

    loaded: LoadedModels
    measured: Mapping[int, Profile]  # by side
    bare: Callable[[int], BareModel]  # of a side, at the tier's bucket sizes
    amounts: Amounts
    curves_path: Path
    _solo: dict[int, Solo] = field(default_factory=dict)
    _best_rows: dict[int, int] = field(default_factory=dict)
    _work: dict[int, Work] = field(default_factory=dict)
    _simulated: dict[tuple[str, int], simulator.Figure] = field(default_factory=dict)

    @property
    def seeds(self) -> Sequence[int]:
        """Of every part."""
        return self.amounts.seeds

    @cached_property
    def profiles(self) -> EngineProfiles:
        """The profiles as a worker loads them."""
        return profiles_of(self.loaded, self.measured)

    @property
    def ours(self) -> Continuous:
        """Return the engine with its profiles, as in a worker."""
        return Continuous(self.loaded, self.profiles.step_seconds)

    def max_rows(self, side: int) -> int:
        """Return the row cap from self-test and profile for that side; the bare model uses it too."""
        return self.loaded.row_limits[MODEL][side * side]

    def best_rows(self, side: int) -> int:
        """Return the bare model's best row count, for dynamic batching, which guarantees no equal bytes."""
        if side not in self._best_rows:
            seconds = self.bare(side).step_table(ROW_LIMITS[side * side])
            self._best_rows[side] = min(seconds, key=lambda num_rows: seconds[num_rows] / num_rows)
        return self._best_rows[side]

    def cap_share(self, side: int) -> float:
        """Measure the share of the bare model's rows a second that remains at the cap."""
        seconds = self.bare(side).step_table(ROW_LIMITS[side * side])
        best = min(taken / num_rows for num_rows, taken in seconds.items())
        return best * self.max_rows(side) / seconds[self.max_rows(side)]

    def solo(self, side: int) -> Solo:
        """Return the solo seconds of every class of the mix; measured once."""
        if side not in self._solo:
            self._solo[side] = measure_solo(self.ours, side, self.amounts.solo_repeats)
        return self._solo[side]

    def cached_share(self, side: int) -> float:
        """Return the cost of a cached step ÷ the cost of a full one, from the profile."""
        return self.measured[side].cached_share

    @cached_property
    def step_tables(self) -> dict[int, StepTable]:
        """Seconds of a bare step by rows, for each side."""
        return {side: StepTable(self.bare(side).step_table(self.max_rows(side))) for side in SIDES}

    def work(self, side: int) -> Work:
        """Return what the simulator needs to know about this machine at that side; measured once."""
        if side not in self._work:
            prices = self.bare(side).prices(repeats=7)
            latent_side = side // self.loaded.models[MODEL].pixels_per_latent
            self._work[side] = Work(
                tables={latent_side: self.step_tables[side]},
                max_rows=self.max_rows(side),
                # Half of the requests are guided, and have two texts.
                image_seconds=1.5 * prices.encode_seconds + prices.decode_seconds,
                sizes={latent_side: 1.0},
                bucket=buckets_of(self.loaded, side).rows,
            )
        return self._work[side]

    def simulated(self, name: str, side: int) -> simulator.Figure:
        """Return a figure of the simulator with this machine's step times; computed once."""
        if (name, side) not in self._simulated:
            share = 5 if name.startswith("goodput") else 2  # each sample of goodput is a search
            self._simulated[name, side] = simulator.FIGURES[name](
                self.work(side), seeds=self.seeds, num_requests=self.amounts.simulated // share
            )
        return self._simulated[name, side]


def load_bench(amounts: Amounts, curves_path: Path) -> Bench:
    """The model self-tested on one thread, and its profiles measured in CPU seconds."""
    spec = ModelSpec(MODEL, str(FOLDER))
    loaded = load_models([spec], device="cpu:0", row_limits={MODEL: ROW_LIMITS}, num_threads=1)
    model = loaded.models[MODEL]
    measured = {
        side: Measurement(model, width=side, height=side, clock=time.process_time).profile(
            loaded.row_limits[MODEL][side * side], seconds=amounts.profile_seconds, device_name="CPU"
        )
        for side in SIDES
    }
    loaded = replace(loaded, row_limits=profiles_of(loaded, measured).capped(loaded.row_limits))

    @cache
    def bare(side: int) -> BareModel:
        counts = range(1, loaded.row_limits[MODEL][side * side] + 1)
        buckets = buckets_of(loaded, side)
        return BareModel(FOLDER, side, tuple(sorted({buckets.rows(count) for count in counts})))

    return Bench(loaded, measured, bare, amounts, curves_path)


def profiles_of(loaded: LoadedModels, measured: Mapping[int, Profile]) -> EngineProfiles:
    """The profiles of the shipped model, of squares of these sides."""
    by_pixels = {side * side: profile for side, profile in measured.items()}
    return EngineProfiles({MODEL: by_pixels}, {MODEL: loaded.models[MODEL].pixels_per_latent})


def buckets_of(loaded: LoadedModels, side: int) -> Buckets:
    """Return the bucket in which the shipped model runs so many rows at this side."""
    model = loaded.models[MODEL]
    return at(model.buckets, side // model.pixels_per_latent, side // model.pixels_per_latent)
