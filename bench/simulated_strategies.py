"""One simulated device under six ways of batching: each serves a trace and writes when each image was done.

Owns the simulated clock. `ours` asks `engine.policy.policy.Policy` itself at every step boundary, as the
engine does; the others are what it is held against. The dynamic arms run at just the rows that they have.
It knows no figures, and no seconds but those of `Work`.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.arrivals import IN_TIME_SLOWDOWN, Arrival, Work
from bench.fifo import first_that_fit
from engine.policy.policy import BatchKey, Policy

Strategy = Callable[[Work, Sequence[Arrival]], None]
"""Serves every arrival of the trace and writes its `ended_at`."""


def one_at_a_time(work: Work, trace: Sequence[Arrival]) -> None:
    """The oldest first, alone, on the bare model."""
    now = 0.0
    for arrival in trace:
        seconds = work.bare_seconds(arrival.num_steps, arrival.num_rows, arrival.side)
        now = max(now, arrival.arrived_at) + seconds
        arrival.ended_at = now


def keyed_dynamic(timeout_seconds: float) -> Strategy:
    """Batches of equal size and step count, run to their end: full, or when the oldest has waited."""

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
    """How many of the queue are past their deadline: they leave it, unserved."""
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


@dataclass(eq=False, slots=True)
class Running:
    """An arrival as the policy sees it while it is in flight."""

    arrival: Arrival
    key: BatchKey
    num_steps: int
    num_steps_left: int
    num_rows: int
    submitted_at: float
    account: str
    lane: str = "interactive"
    is_isolated: bool = False
    has_begun: bool = False
    signature: int = 0
    deadline_at: float | None = None

    @property
    def num_full_steps_left(self) -> int:
        """All of them."""
        return self.num_steps_left


def continuous_fifo(work: Work, trace: Sequence[Arrival], *, has_deadlines: bool = False) -> None:
    """A step batch at every step, the oldest first: of its size, whatever fits in order of arrival."""

    def choose(running: Sequence[Running], _now: float) -> list[Running]:
        return first_that_fit(running, work.max_rows)

    _serve_steps(work, trace, choose, lambda _key, _seconds: None, has_deadlines=has_deadlines)


def continuous_shortest(work: Work, trace: Sequence[Arrival], *, has_deadlines: bool = False) -> None:
    """A step batch at every step, whoever has fewest steps left first, however long the others wait."""

    def choose(running: Sequence[Running], _now: float) -> list[Running]:
        ordered = sorted(running, key=lambda member: (member.num_steps_left, member.submitted_at))
        return first_that_fit(ordered, work.max_rows)

    _serve_steps(work, trace, choose, lambda _key, _seconds: None, has_deadlines=has_deadlines)


def ours(work: Work, trace: Sequence[Arrival], *, has_deadlines: bool = False) -> None:
    """A step batch at every step, chosen by the policy, which knows a bucket's seconds from a profile."""
    policy = Policy(
        lambda _key: work.max_rows,
        step_seconds=lambda key, num_rows: work.step_seconds(key.latent_height, num_rows),
        bucket_rows=lambda _key, num_rows: work.bucket(num_rows),
    )
    _serve_steps(work, trace, policy.choose, policy.stepped, has_deadlines=has_deadlines)


def with_deadlines(strategy: Callable[..., None]) -> Strategy:
    """The arm, told of each request what it may take, as a user can; it drops what is past that."""
    return partial(strategy, has_deadlines=True)


def _serve_steps(
    work: Work,
    trace: Sequence[Arrival],
    choose: Callable[[Sequence[Running], float], list[Running]],
    stepped: Callable[[BatchKey, float], None],
    *,
    has_deadlines: bool,
) -> None:
    keys = {side: BatchKey("simulated", side, side) for side in work.sizes}
    running: list[Running] = []
    now, num_taken = 0.0, 0
    while running or num_taken < len(trace):
        while num_taken < len(trace) and trace[num_taken].arrived_at <= now:
            running.append(_joined(trace[num_taken], keys, has_deadlines=has_deadlines))
            num_taken += 1
        if has_deadlines:
            running = [member for member in running if not _is_dropped(member, now)]
        if not running:
            now = trace[num_taken].arrived_at
            continue
        batch = choose(running, now)
        key = batch[0].key
        num_rows = work.bucket(sum(member.num_rows for member in batch))
        seconds = work.step_seconds(key.latent_height, num_rows)
        now += seconds
        stepped(key, seconds)
        for member in batch:
            member.has_begun = True
            member.num_steps_left -= 1
            if not member.num_steps_left:
                now += work.image_seconds
                member.arrival.ended_at = now
                running.remove(member)


def _joined(arrival: Arrival, keys: dict[int, BatchKey], *, has_deadlines: bool) -> Running:
    return Running(
        arrival,
        keys[arrival.side],
        arrival.num_steps,
        arrival.num_steps,
        arrival.num_rows,
        arrival.arrived_at,
        arrival.account,
        deadline_at=_deadline_of(arrival) if has_deadlines else None,
    )


def _is_dropped(member: Running, now: float) -> bool:
    """Whether its deadline is past, so that the engine gives it up."""
    if member.deadline_at is None or now < member.deadline_at:
        return False
    member.arrival.ended_at = math.inf
    return True
