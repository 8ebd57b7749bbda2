"""One simulated device under seven strategies of batching: each serves a trace and writes when images ended.

The strategies of continuous batching are policies on the device of `engine.policy.simulation`: `ours` is the
engine's own policy. The dynamic strategies run batches to their end, at exactly the rows that they have. It
does not know figures, nor any seconds but those of `Work`.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from bench.arrivals import IN_TIME_SLOWDOWN, Arrival, Work
from bench.fifo import OldestFirst
from engine.policy.candidate import BatchKey, Candidate
from engine.policy.policy import Policy
from engine.policy.simulation import SimulatedDevice, SimulatedGeneration

C = TypeVar("C", bound=Candidate)

Strategy = Callable[[Work, Sequence[Arrival]], None]
"""Serves every arrival of the trace and writes its `ended_at`: infinite if it was dropped."""


def one_at_a_time(work: Work, trace: Sequence[Arrival]) -> None:
    """The oldest first, alone, on the bare model."""
    now = 0.0
    for arrival in trace:
        seconds = work.bare_seconds(arrival.num_steps, arrival.num_rows, arrival.side)
        now = max(now, arrival.arrived_at) + seconds
        arrival.ended_at = now


def keyed_dynamic(timeout_seconds: float) -> Strategy:
    """Batches of equal size and step count, begun when full or when the oldest member has waited."""

    def serve(work: Work, trace: Sequence[Arrival], *, has_deadlines: bool = False) -> None:
        def group_of(arrival: Arrival) -> object:
            return arrival.side, arrival.num_steps

        _serve_batches(work, trace, group_of, timeout_seconds, has_deadlines=has_deadlines)

    return serve


def padded_dynamic(timeout_seconds: float) -> Strategy:
    """Batches of equal size, run for as many steps as their longest member needs."""

    def serve(work: Work, trace: Sequence[Arrival], *, has_deadlines: bool = False) -> None:
        def group_of(arrival: Arrival) -> object:
            return arrival.side

        _serve_batches(work, trace, group_of, timeout_seconds, has_deadlines=has_deadlines)

    return serve


def oldest_grouped(timeout_seconds: float, *, max_requests: int) -> Strategy:
    """The oldest `max_requests`, whatever they are, in groups of equal parameters, one group after the other.

    The next requests are taken only once all groups have ended. This is the policy of Aquiles-Image 0.8.3
    (github.com/Aquiles-ai/Aquiles-Image, `aquilesimage/runtime/batch_inf.py`: `BatchPipeline`) on one device:
    a group has equal size, step count, number of images and seed, and any guidance scale. Here the seeds are
    equal: with seeds of their own, no two requests share a group. Aquiles-Image runs the groups of a batch in
    threads at once; one after the other they end no later on one device.
    """

    def serve(work: Work, trace: Sequence[Arrival]) -> None:
        waiting: deque[Arrival] = deque()
        upcoming = deque(trace)
        now = 0.0
        while waiting or upcoming:
            while upcoming and upcoming[0].arrived_at <= now:
                waiting.append(upcoming.popleft())
            is_due = waiting and now >= waiting[0].arrived_at + timeout_seconds
            if not is_due and len(waiting) < max_requests:
                events = [one.arrived_at for one in itertools.islice(upcoming, 1)]
                now = min(
                    [*events, *(one.arrived_at + timeout_seconds for one in itertools.islice(waiting, 1))]
                )
                continue
            taken = [waiting.popleft() for _ in range(min(max_requests, len(waiting)))]
            groups: dict[object, list[Arrival]] = {}
            for arrival in taken:
                groups.setdefault((arrival.side, arrival.num_steps), []).append(arrival)
            for group in groups.values():
                num_rows = sum(arrival.num_rows for arrival in group)
                now += group[0].num_steps * work.step_seconds(group[0].side, num_rows)
                now += len(group) * work.image_seconds
                for arrival in group:
                    arrival.ended_at = now

    return serve


def _serve_batches(
    work: Work,
    trace: Sequence[Arrival],
    group_of: Callable[[Arrival], object],
    timeout_seconds: float,
    *,
    has_deadlines: bool,
) -> None:
    groups: dict[object, deque[Arrival]] = {}
    now, num_taken, num_ended = 0.0, 0, 0
    while num_ended < len(trace):
        while num_taken < len(trace) and trace[num_taken].arrived_at <= now:
            arrival = trace[num_taken]
            groups.setdefault(group_of(arrival), deque()).append(arrival)
            num_taken += 1
        if has_deadlines:
            num_ended += sum(_drop_late(queue, now) for queue in groups.values())
            if num_ended == len(trace):
                break
        waiting = [queue for queue in groups.values() if queue]
        ready = [
            queue
            for queue in waiting
            if now >= queue[0].arrived_at + timeout_seconds
            or sum(arrival.num_rows for arrival in queue) >= work.max_rows
        ]
        if not ready:
            events = [queue[0].arrived_at + timeout_seconds for queue in waiting]
            if num_taken < len(trace):
                events.append(trace[num_taken].arrived_at)
            now = min(events)
            continue
        batch = _take_batch(min(ready, key=lambda queue: queue[0].arrived_at), work.max_rows)
        num_rows = sum(arrival.num_rows for arrival in batch)
        step_seconds = work.step_seconds(batch[0].side, num_rows)
        now += max(arrival.num_steps for arrival in batch) * step_seconds
        for arrival in batch:
            now += work.image_seconds
            arrival.ended_at = now
        num_ended += len(batch)


def _drop_late(queue: deque[Arrival], now: float) -> int:
    """Remove from the queue what is past its deadline; how many these were."""
    late = [arrival for arrival in queue if now >= _deadline_of(arrival)]
    for arrival in late:
        queue.remove(arrival)
        arrival.ended_at = math.inf
    return len(late)


def _deadline_of(arrival: Arrival) -> float:
    return arrival.arrived_at + IN_TIME_SLOWDOWN * arrival.solo_seconds


def _take_batch(queue: deque[Arrival], max_rows: int) -> list[Arrival]:
    batch = [queue.popleft()]
    num_rows = batch[0].num_rows
    while queue and num_rows + queue[0].num_rows <= max_rows:
        batch.append(queue.popleft())
        num_rows += batch[-1].num_rows
    return batch


class ShortestFirst(OldestFirst):
    """A policy that looks at steps left alone, however long the others wait."""

    def order(self, members: Iterable[C], now: float) -> list[C]:  # noqa: ARG002  steps need no clock
        """The fewest steps left first, then the oldest."""
        return sorted(members, key=lambda member: (member.num_steps_left, member.submitted_at))


def continuous_fifo(work: Work, trace: Sequence[Arrival], *, has_deadlines: bool = False) -> None:
    """A new step batch at every step, the oldest first: all of its size that fit, in order of arrival."""
    _serve_steps(work, trace, OldestFirst(lambda _: work.max_rows), has_deadlines=has_deadlines)


def continuous_shortest(work: Work, trace: Sequence[Arrival], *, has_deadlines: bool = False) -> None:
    """A new step batch at every step, the fewest steps left first."""
    _serve_steps(work, trace, ShortestFirst(lambda _: work.max_rows), has_deadlines=has_deadlines)


def ours(work: Work, trace: Sequence[Arrival], *, has_deadlines: bool = False) -> None:
    """A new step batch at every step, chosen by the policy, which knows a bucket's seconds from a profile."""
    policy = Policy(
        lambda _: work.max_rows,
        step_seconds=lambda key, num_rows: work.step_seconds(key.latent_height, num_rows),
        bucket_rows=lambda _, num_rows: work.bucket(num_rows),
    )
    _serve_steps(work, trace, policy, has_deadlines=has_deadlines)


def with_deadlines(strategy: Callable[..., None]) -> Strategy:
    """The strategy, given the deadline of each request; it drops what is past it."""
    return partial(strategy, has_deadlines=True)


def _serve_steps(work: Work, trace: Sequence[Arrival], policy: Policy, *, has_deadlines: bool) -> None:
    device, arrivals = SimulatedDevice(policy, _WorkCosts(work)), {}
    for arrival in trace:
        generation = SimulatedGeneration(
            BatchKey("simulated", arrival.side, arrival.side),
            arrival.num_steps,
            arrival.num_rows,
            arrival.num_steps,
            account=arrival.account,
            submitted_at=arrival.arrived_at,
            deadline_at=_deadline_of(arrival) if has_deadlines else None,
        )
        arrivals[generation] = arrival
        device.submit(generation, arrival.arrived_at)
    while ended := device.advance():
        for generation in ended:
            arrivals[generation].ended_at = generation.ended_at


class _WorkCosts:
    """The costs of `Work` as a simulated device reads them: an image costs its seconds when it is decoded."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def step_seconds(self, key: BatchKey, num_rows: int) -> float:
        """Seconds of a step at the bucket of `num_rows`."""
        return self._work.step_seconds(key.latent_height, self._work.bucket(num_rows))

    def cached_share(self, _: BatchKey) -> float:
        """No step is cached."""
        return 1.0

    def encode_seconds(self, _: BatchKey) -> float:
        """Encoding counts with decoding."""
        return 0.0

    def decode_seconds(self, _: BatchKey) -> float:
        """Seconds of one image."""
        return self._work.image_seconds
