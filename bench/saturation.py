"""Measures throughput with work always waiting: the engine, dynamic batches and the bare model, in turns.

Every strategy is measured in short segments, again and again, so that a machine that slows down slows all of
them. Only full step batches count, because at the end of a finite list every strategy runs half empty. The
work is priced by the bare model's costs, measured in the same run.
"""

import itertools
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.bare import BareModel, BarePrices
from bench.clock import WorkClock
from bench.strategies import Continuous, Dynamic, rows_of
from bench.timed_exchange import Spent, TimedExchange, timed
from bench.workload import MODEL, mixed_requests, num_row_steps, num_texts
from engine.loading.load import LoadedModels
from engine.request import GenerationRequest

FILLING_TICKS = 4


@dataclass
class Done:
    """The work of one strategy: its CPU seconds and its results."""

    seconds: float = 0.0
    num_row_steps: float = 0.0
    num_idle_row_steps: float = 0.0  # of rows whose request had ended
    num_texts: int = 0
    num_images: int = 0
    bare_seconds: float = 0.0  # the cost of the same work on the bare model, measured in the same run
    idle_bare_seconds: float = 0.0  # and the cost of the idle rows there
    spent: Spent = field(default_factory=Spent)  # the part of `seconds` in the exchange; for the engine only

    @property
    def share_of_bare(self) -> float:
        """Speed as a share of the bare model's at its best batch."""
        return self.bare_seconds / self.seconds

    @property
    def most_gain(self) -> float:
        """The gain of leaving out the idle rows alone."""
        return 1 + self.idle_bare_seconds / self.bare_seconds

    @property
    def forward_share(self) -> float:
        """The share of the seconds in which a module computes."""
        return self.spent.forward / self.seconds

    @property
    def beside(self) -> str:
        """The parts outside the forward passes, as shares of the seconds."""
        parts = {
            "the pipelines' own code": self.spent.pipeline,
            "the exchange": self.spent.exchange,
            "the engine": self.seconds - self.spent.total,
        }
        return ", ".join(f"{name} {seconds / self.seconds:.4f}" for name, seconds in parts.items())

    def add(self, part: "Done", prices: Sequence[BarePrices]) -> None:
        """One more segment, at the mean of the prices measured around it."""
        self.seconds += part.seconds
        self.num_row_steps += part.num_row_steps
        self.num_idle_row_steps += part.num_idle_row_steps
        self.num_texts += part.num_texts
        self.num_images += part.num_images
        self.spent += part.spent
        self.bare_seconds += statistics.fmean(
            one.seconds(
                num_row_steps=part.num_row_steps, num_texts=part.num_texts, num_images=part.num_images
            )
            for one in prices
        )
        row_seconds = statistics.fmean(one.row_seconds for one in prices)
        self.idle_bare_seconds += part.num_idle_row_steps * row_seconds


@dataclass
class Saturation:
    """The strategies of one run."""

    engine: Done = field(default_factory=Done)
    keyed: Done = field(default_factory=Done)
    padded: Done = field(default_factory=Done)
    alone: Done = field(default_factory=Done)  # one request at a time


def saturate(
    ours: Continuous,
    bare: BareModel,
    *,
    side: int,
    max_rows: int,
    their_max_rows: int,
    seed: int,
    num_requests: int,
    segment_seconds: float,
) -> Saturation:
    """Run the engine and the dynamic strategies in turns; return their work at full batches.

    `their_max_rows` is the cap of dynamic batches.
    """
    strategies = Saturation()
    requests = mixed_requests(num_requests, side, seed)
    engine_segments = _engine_segments(ours, requests, max_rows, segment_seconds)
    keyed = _dynamic_segments(ours.loaded, requests, their_max_rows, segment_seconds, by_steps=True)
    padded = _dynamic_segments(ours.loaded, requests, their_max_rows, segment_seconds, by_steps=False)
    alone = _dynamic_segments(ours.loaded, requests, 1, segment_seconds, by_steps=False)
    # A segment of each in turn, priced between two measurements of the bare model.
    before = bare.prices()
    for segment in engine_segments:
        segments = [
            (strategies.engine, segment),
            (strategies.keyed, next(keyed, None)),
            (strategies.padded, next(padded, None)),
            (strategies.alone, next(alone, None)),
        ]
        after = bare.prices()
        for total, part in segments:
            if part is None:
                continue
            total.add(part, (before, after))
        before = after
    return strategies


def _engine_segments(
    ours: Continuous, requests: Sequence[GenerationRequest], max_rows: int, segment_seconds: float
) -> Iterator[Done]:
    """Run the engine with all requests submitted at once, until fewer wait than fill a step batch."""
    with timed(ours.loaded.models[MODEL], time.process_time) as exchange:
        yield from _timed_segments(ours, exchange, requests, max_rows, segment_seconds)


def _timed_segments(
    ours: Continuous,
    exchange: TimedExchange,
    requests: Sequence[GenerationRequest],
    max_rows: int,
    segment_seconds: float,
) -> Iterator[Done]:
    clock = WorkClock()
    engine = ours.engine(clock)
    progress: Counter[int] = Counter()

    def submit(index: int, request: GenerationRequest) -> None:
        engine.submit(request, on_progress=lambda done, _: progress.update({index: done - progress[index]}))

    for index, request in enumerate(requests):
        submit(index, request)

    def row_steps() -> float:
        return sum(steps * rows_of(requests[index]) for index, steps in progress.items())

    def texts() -> int:
        return sum(num_texts(requests[index]) for index in progress)

    def tick() -> None:
        with clock.turn():
            engine.tick()

    for _ in range(FILLING_TICKS):
        tick()
    while len(requests) - len(progress) > max_rows:
        before = (row_steps(), texts(), engine.num_generations, exchange.spent)
        begun = time.process_time()
        while time.process_time() - begun < segment_seconds and len(requests) - len(progress) > max_rows:
            tick()
        yield Done(
            seconds=time.process_time() - begun,
            num_row_steps=row_steps() - before[0],
            num_texts=texts() - before[1],
            num_images=before[2] - engine.num_generations,
            spent=exchange.spent - before[3],
        )
    engine.stop()


def _dynamic_segments(
    loaded: LoadedModels,
    requests: Sequence[GenerationRequest],
    max_rows: int,
    segment_seconds: float,
    *,
    by_steps: bool,
) -> Iterator[Done]:
    """Run full batches of the same requests, as many as the caller takes."""
    strategy = Dynamic(loaded, max_rows=max_rows, timeout_seconds=0.0, by_steps=by_steps)
    part = Done()
    for batch in _full_batches(strategy, requests, max_rows):
        begun = time.process_time()
        num_images = sum(place is not None for place in strategy.run(batch))
        part.seconds += time.process_time() - begun
        part.num_row_steps += sum(map(num_row_steps, batch))
        longest = max(request.num_inference_steps for request in batch)
        part.num_idle_row_steps += sum(longest * rows_of(one) - num_row_steps(one) for one in batch)
        part.num_texts += sum(map(num_texts, batch))
        part.num_images += num_images
        if part.seconds >= segment_seconds:
            yield part
            part = Done()


def _full_batches(
    strategy: Dynamic, requests: Sequence[GenerationRequest], max_rows: int
) -> Iterator[list[GenerationRequest]]:
    queues: defaultdict[int, list[GenerationRequest]] = defaultdict(list)
    for request in itertools.cycle(requests):
        queue = queues[strategy.key(request)]
        if queue and sum(map(rows_of, queue)) + rows_of(request) > max_rows:
            yield list(queue)
            queue.clear()
        queue.append(request)
