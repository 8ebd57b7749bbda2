"""One simulated device under five ways of batching: each serves a trace and writes when each image was done.

Owns the simulated clock. `ours` asks `engine.policy.Policy` itself at every step boundary, as the engine
does; the others are what it is held against. It knows no figures, and no seconds but those of `Work`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.arrivals import Arrival, Work
from engine.buckets import MULTIPLES_OF_FOUR
from engine.policy import BatchKey, Policy

Arm = Callable[[Work, Sequence[Arrival]], None]
"""Serves every arrival of the trace and writes its `ended_at`."""


def one_at_a_time(_work: Work, trace: Sequence[Arrival]) -> None:
    """The oldest first, alone, on the bare model."""
    now = 0.0
    for arrival in trace:
        now = max(now, arrival.arrived_at) + arrival.solo_seconds
        arrival.ended_at = now


def keyed_dynamic(timeout_seconds: float) -> Arm:
    """Batches of equal size and step count, run to their end: full, or when the oldest has waited."""

    def serve(work: Work, trace: Sequence[Arrival]) -> None:
        _serve_batches(work, trace, lambda arrival: (arrival.side, arrival.num_steps), timeout_seconds)

    return serve


def padded_dynamic(timeout_seconds: float) -> Arm:
    """Batches of equal size, run for as many steps as their longest member needs."""

    def serve(work: Work, trace: Sequence[Arrival]) -> None:
        _serve_batches(work, trace, lambda arrival: (arrival.side,), timeout_seconds)

    return serve


def _serve_batches(
    work: Work, trace: Sequence[Arrival], group_of: Callable[[Arrival], object], timeout_seconds: float
) -> None:
    groups: dict[object, deque[Arrival]] = {}
    now, num_taken, num_ended = 0.0, 0, 0
    while num_ended < len(trace):
        while num_taken < len(trace) and trace[num_taken].arrived_at <= now:
            arrival = trace[num_taken]
            groups.setdefault(group_of(arrival), deque()).append(arrival)
            num_taken += 1
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
        now += max(arrival.num_steps for arrival in batch) * step_seconds + len(batch) * work.image_seconds
        for arrival in batch:
            arrival.ended_at = now
        num_ended += len(batch)


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
    is_solo: bool = False
    has_begun: bool = False
    deadline_at: float | None = None


def continuous_fifo(work: Work, trace: Sequence[Arrival]) -> None:
    """A step batch at every step, the oldest first: of its size, whatever fits in order of arrival."""

    def choose(running: Sequence[Running], _now: float) -> list[Running]:
        batch: list[Running] = []
        num_rows = 0
        for member in running:
            if member.key == running[0].key and num_rows + member.num_rows <= work.max_rows:
                batch.append(member)
                num_rows += member.num_rows
                if num_rows == work.max_rows:
                    break
        return batch

    _serve_steps(work, trace, choose, lambda _key, _seconds: None)


def ours(work: Work, trace: Sequence[Arrival]) -> None:
    """A step batch at every step, chosen by the policy."""
    policy = Policy(
        lambda _key: work.max_rows,
        step_seconds=lambda key, num_rows: work.step_seconds(key.latent_height, num_rows),
    )
    _serve_steps(work, trace, policy.choose, policy.stepped)


def _serve_steps(
    work: Work,
    trace: Sequence[Arrival],
    choose: Callable[[Sequence[Running], float], list[Running]],
    stepped: Callable[[BatchKey, float], None],
) -> None:
    keys = {side: BatchKey("simulated", side, side) for side in work.sizes}
    running: list[Running] = []
    now, num_taken = 0.0, 0
    while running or num_taken < len(trace):
        while num_taken < len(trace) and trace[num_taken].arrived_at <= now:
            running.append(_joined(trace[num_taken], keys))
            num_taken += 1
        if not running:
            now = trace[num_taken].arrived_at
            continue
        batch = choose(running, now)
        key = batch[0].key
        num_rows = MULTIPLES_OF_FOUR.rows(sum(member.num_rows for member in batch))
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


def _joined(arrival: Arrival, keys: dict[int, BatchKey]) -> Running:
    return Running(
        arrival,
        keys[arrival.side],
        arrival.num_steps,
        arrival.num_steps,
        arrival.num_rows,
        arrival.arrived_at,
        arrival.account,
    )
