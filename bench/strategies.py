"""Strategies of batching on the real model: the same arrivals, pipeline and exchange, batched differently.

`Continuous` is the engine itself. `Dynamic` fills a batch, runs it to its end and begins the next: by step
count, padded to the longest, or one request at a time. It guarantees no exact bytes, so its batches run at
exactly the rows that they have, where the engine pads to a bucket. Each strategy takes arrivals on a
`WorkClock`, yields after every step, and reports when every request ended.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.clock import WorkClock
from bench.workload import DueRequest
from engine.engine import Engine
from engine.errors import DeadlineExceeded, NumericError
from engine.loading.load import LoadedModels
from engine.pipelines.components import is_denoiser
from engine.pipelines.pipeline_call import PipelineCall
from engine.policy.policy import BatchKey
from engine.request import GenerationRequest


@dataclass(frozen=True)
class Ended:
    """The end of one arrival: the seconds since it was due, or None if it was dropped."""

    arrival: DueRequest
    latency_seconds: float | None


Serve = Callable[[Sequence[DueRequest], WorkClock], Iterator[Sequence[Ended]]]
"""Serves all arrivals on the clock; after every step it yields those that ended since it last did."""


@dataclass(frozen=True)
class Continuous:
    """The engine, ticked by the benchmark: arrivals join between its ticks.

    `step_seconds` is the profile that a worker would give it; `kind` is the class of the engine.
    """

    loaded: LoadedModels
    step_seconds: Callable[[BatchKey, int], float | None] | None = None
    kind: type[Engine] = Engine

    def engine(self, clock: Callable[[], float]) -> Engine:
        """A new engine."""
        return self.kind(
            self.loaded.models,
            self.loaded.row_limits,
            determinism=self.loaded.determinism,
            clock=clock,
            step_seconds=self.step_seconds,
        )

    def __call__(self, arrivals: Sequence[DueRequest], clock: WorkClock) -> Iterator[Sequence[Ended]]:
        """Serve all arrivals, a tick at a time; late ones are dropped."""
        engine = self.engine(clock)
        begun_at = clock()
        ended: list[Ended] = []
        failures: list[BaseException] = []
        upcoming = deque(arrivals)

        def note(arrival: DueRequest, future: "Future[object]") -> None:
            error = future.exception()
            ended.append(Ended(arrival, None if error else clock() - begun_at - arrival.seconds))
            if error and not isinstance(error, DeadlineExceeded):
                failures.append(error)

        try:
            while upcoming or not engine.is_idle:
                while upcoming and upcoming[0].seconds <= clock() - begun_at:
                    arrival = upcoming.popleft()
                    request = _since_due(arrival, clock() - begun_at)
                    engine.submit(request).future.add_done_callback(partial(note, arrival))
                if engine.is_idle:
                    clock.skip_to(begun_at + upcoming[0].seconds)
                else:
                    engine.tick()
                for failure in failures:
                    raise failure
                yield tuple(ended)
                ended.clear()
        finally:
            engine.stop()  # a caller that stops early leaves calls in flight


def _since_due(arrival: DueRequest, now: float) -> GenerationRequest:
    """The request as it is submitted `now`: its deadline counts from its due time."""
    left = arrival.request.seconds_left
    if left is None:
        return arrival.request
    return replace(arrival.request, seconds_left=left - (now - arrival.seconds))


class Dynamic:
    """Batches that begin when full, or when their oldest member has waited `timeout_seconds`.

    `by_steps` keys the queue by step count; without it a batch runs as long as its longest member, and rows
    that have ended are computed in vain. `max_rows` 1 is one request at a time. A batch of diffusers itself
    has one guidance scale; here, as in the engine, each member has a call of its own.
    """

    def __init__(
        self, loaded: LoadedModels, *, max_rows: int, timeout_seconds: float, by_steps: bool
    ) -> None:
        self._models = loaded.models
        self._max_rows = max_rows
        self._timeout_seconds = timeout_seconds
        self._by_steps = by_steps

    def __call__(self, arrivals: Sequence[DueRequest], clock: WorkClock) -> Iterator[Sequence[Ended]]:
        """Serve all arrivals; the batch that has waited longest first."""
        begun_at = clock()
        queues: dict[int, deque[DueRequest]] = {}
        upcoming = deque(arrivals)
        while upcoming or any(queues.values()):
            now = clock() - begun_at
            while upcoming and upcoming[0].seconds <= now:
                arrival = upcoming.popleft()
                queues.setdefault(self.key(arrival.request), deque()).append(arrival)
            if late := [one for queue in queues.values() for one in _without_late(queue, now)]:
                yield tuple(Ended(arrival, None) for arrival in late)
            due = [queue for queue in queues.values() if queue and self._is_due(queue, now)]
            if not due:
                clock.skip_to(begun_at + self._next_event(queues.values(), upcoming))
                continue
            batch = self.take(min(due, key=lambda queue: queue[0].seconds))
            for index in self.run([one.request for one in batch]):
                if index is None:
                    yield ()
                else:
                    yield (Ended(batch[index], clock() - begun_at - batch[index].seconds),)

    def key(self, request: GenerationRequest) -> int:
        """The key of the queue that the request waits in."""
        return request.num_inference_steps if self._by_steps else 0

    def take(self, queue: deque[DueRequest]) -> list[DueRequest]:
        """Take as many requests from the head of the queue as fit."""
        batch, num_rows = [queue.popleft()], 0
        num_rows = rows_of(batch[0].request)
        while queue and num_rows + rows_of(queue[0].request) <= self._max_rows:
            num_rows += rows_of(queue[0].request)
            batch.append(queue.popleft())
        return batch

    @torch.inference_mode()
    def run(self, requests: Sequence[GenerationRequest]) -> Iterator[int | None]:
        """Draw a batch from texts to pixels; yields None after each step, and the index of each image."""
        model = self._models[requests[0].model]
        calls: list[PipelineCall] = []
        try:
            for request in requests:
                calls.append(model.begin(request))
                model.exchange.run_to_denoiser(calls[-1])
                _raise_failure(calls[-1:])
            num_rows = sum(rows_of(request) for request in requests)
            while running := [call for call in calls if _waits_for_step(call)]:
                # Rows that have ended are padding, which costs as much as any row.
                if model.exchange.run(running, num_rows):
                    raise NumericError
                _raise_failure(running)
                yield None
            for index, call in enumerate(calls):
                model.exchange.run_to_denoiser(call)
                _raise_failure([call])
                yield index
        finally:
            for call in calls:
                call.end()

    def _is_due(self, queue: deque[DueRequest], now: float) -> bool:
        rows = itertools.accumulate(rows_of(one.request) for one in queue)
        # Full: another guided request would not fit any more.
        is_full = any(num_rows > self._max_rows - 2 for num_rows in rows)
        return is_full or now - queue[0].seconds >= self._timeout_seconds

    def _next_event(self, queues: Iterable[deque[DueRequest]], upcoming: deque[DueRequest]) -> float:
        instants = [queue[0].seconds + self._timeout_seconds for queue in queues if queue]
        return min([*instants, *(one.seconds for one in itertools.islice(upcoming, 1))])


def _waits_for_step(call: PipelineCall) -> bool:
    return call.parked is not None and is_denoiser(call.parked.name)


def _raise_failure(calls: Sequence[PipelineCall]) -> None:
    for call in calls:
        if call.error is not None:
            raise call.error


def _without_late(queue: deque[DueRequest], now: float) -> list[DueRequest]:
    """Remove from `queue` the requests that are past their deadline, and return them."""
    due = [(one, one.request.seconds_left) for one in queue]
    late = [one for one, left in due if left is not None and now >= one.seconds + left]
    for one in late:
        queue.remove(one)
    return late


def rows_of(request: GenerationRequest) -> int:
    """Rows of each step of the request."""
    return 2 if request.guidance_scale > 1 else 1
