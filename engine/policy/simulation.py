"""Simulates one device with the real policy and a simulated clock, to find when each generation ends.

Drives `Policy` and `SideWork` in the order of `engine.engine.Engine.tick`, and takes seconds from `Costs`
where the engine runs modules. Estimates and benchmarks share it. It does not know jobs, slots, tensors or
errors.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Protocol

from catalogue.step_cache import is_full_step, num_full_steps
from engine.policy.candidate import BatchKey
from engine.policy.due_times import QUANTUM_STEPS
from engine.policy.policy import Policy
from engine.policy.side_work import SideWork

COARSE_STEPS = QUANTUM_STEPS // 2
"""Steps between two choices in a coarse simulation, which shifts turns by less than half a quantum."""


class Costs(Protocol):
    """What work costs on the device, in seconds."""

    def step_seconds(self, key: BatchKey, num_rows: int) -> float:
        """Seconds of a full step of `num_rows` rows, padding included."""

    def cached_share(self, key: BatchKey) -> float:
        """Seconds of a step in which every row is cached, divided by those of a full step."""

    def encode_seconds(self, key: BatchKey) -> float:
        """Seconds of encoding the prompts of one generation."""

    def decode_seconds(self, key: BatchKey) -> float:
        """Seconds of decoding one image."""


@dataclass(eq=False, slots=True)
class SimulatedGeneration:
    """A `Candidate` without tensors; `step_index` steps are done when it is submitted."""

    key: BatchKey
    num_steps: int
    num_guided_rows: int = 1
    num_guided_steps: int = 0  # the first ones; each of the others has one row
    step_cache: int = 1
    lane: str = "interactive"
    account: str = ""
    submitted_at: float = 0.0
    deadline_at: float | None = None
    step_index: int = 0
    has_begun: bool = False
    signature: int = 0
    is_isolated: bool = False
    begun_at: float = field(default=math.nan, init=False)  # when its first step started
    ended_at: float = field(default=math.nan, init=False)  # infinite if its deadline passed

    @property
    def num_rows(self) -> int:
        """Rows of the next step."""
        return self.num_guided_rows if self.step_index < self.num_guided_steps else 1

    @property
    def num_steps_left(self) -> int:
        """Steps to run."""
        return self.num_steps - self.step_index

    @property
    def num_full_steps_left(self) -> int:
        """Steps to run that are not cached."""
        return num_full_steps(self.step_cache, self.num_steps, first=self.step_index)

    @property
    def num_steps_alike(self) -> int:
        """Steps until it ends, or drops its guidance before that."""
        if self.step_index < self.num_guided_steps:
            return self.num_guided_steps - self.step_index
        return self.num_steps - self.step_index

    def runs_fully(self, step: int) -> bool:
        """Whether the step that comes after `step` others runs the whole model."""
        return self.step_cache == 1 or is_full_step(self.step_index + step, self.step_cache, self.num_steps)


class SimulatedDevice:
    """Runs generations at the pace of `costs`; `now` is its clock, in seconds.

    `policy` must have been given the step seconds of `costs`, so that it learns nothing from steps. While
    several keys, lanes or accounts compete, it chooses again after `steps_per_choice` steps: the engine does
    so after each. While the choice cannot change, one call of `Policy.choose` stands for many steps.

    `advance` runs a device whose arrivals are all known. Where more may be submitted meanwhile, `changes_at`
    and `run_to_change` run it in halves of a turn: the choice, then the steps that follow from it.
    """

    def __init__(self, policy: Policy, costs: Costs, *, now: float = 0.0, steps_per_choice: int = 1) -> None:
        self.now = now
        self.busy_seconds = 0.0
        self.num_steps = 0  # step batches
        self.num_row_steps = 0  # rows of all step batches, without padding
        self._policy = policy
        self._costs = costs
        self._steps_per_choice = steps_per_choice
        self._side_work = SideWork(lambda: self.now)
        self._arriving: deque[tuple[float, SimulatedGeneration]] = deque()
        self._waiting: list[SimulatedGeneration] = []
        self._running: list[SimulatedGeneration] = []
        self._denoised: list[SimulatedGeneration] = []
        self._chosen: Sequence[SimulatedGeneration] = ()
        self._step_ends: list[float] | None = None  # of the steps of `_chosen`; None before the choice
        self._dropped: list[SimulatedGeneration] = []
        self._has_deadlines = False
        self._pauses_at = math.inf

    def submit(self, generation: SimulatedGeneration, at: float) -> None:
        """Submit a generation at the instant `at`; at one instant, the first submitted goes first."""
        if self._arriving and at < self._arriving[-1][0]:
            insort(self._arriving, (at, generation), key=itemgetter(0))
        else:
            self._arriving.append((at, generation))
        self._has_deadlines |= generation.deadline_at is not None

    def advance(self) -> list[SimulatedGeneration]:
        """Run until generations end, and return them with their `ended_at`; empty if none are left."""
        while self._arriving or self._has_work:
            if ended := self._tick():
                return ended
        return []

    def run_until(self, at: float) -> None:
        """Run to the instant `at`, or to the end of the step or image that it falls into."""
        self._pauses_at = at
        while self.now < at and (self._arriving or self._has_work):
            self._tick()
        self._pauses_at = math.inf

    def changes_at(self) -> float:
        """The instant until which nothing happens, unless something is submitted; infinite if all has ended.

        Before a choice it is the instant of the choice, after it the end of the steps that follow from it.
        """
        if self._step_ends is not None:
            return self._step_ends[self._num_steps_to_run() - 1] if self._step_ends else self.now
        if self._has_work:
            return self.now
        return max(self.now, self._arriving[0][0]) if self._arriving else math.inf

    def run_to_change(self) -> list[SimulatedGeneration]:
        """Run to the end of `changes_at`, and return the generations that end there."""
        if self._step_ends is None:
            self._begin_tick()
            return []
        return self._end_tick()

    def busy_seconds_until(self, at: float) -> float:
        """Busy seconds before an instant to which it was run: of chosen steps, what has passed of them."""
        ends_at = self._step_ends[-1] if self._step_ends else self.now
        return self.busy_seconds + max(0.0, min(at, ends_at) - self.now) - max(0.0, self.now - at)

    def num_steps_left_at(self, generation: SimulatedGeneration, at: float) -> int:
        """Steps that a generation has left at an instant to which it was run: chosen ones, until they end.

        Its own `num_steps_left` changes only when all steps that follow from a choice have ended.
        """
        is_chosen = bool(self._step_ends) and generation in self._chosen
        return generation.num_steps_left - (bisect_right(self._step_ends or (), at) if is_chosen else 0)

    @property
    def _has_work(self) -> bool:
        return bool(self._waiting or self._running or self._denoised)

    def _tick(self) -> list[SimulatedGeneration]:
        if self._step_ends is None:
            self._begin_tick()
        return self._end_tick()

    def _begin_tick(self) -> None:
        if not self._has_work:
            self.now = max(self.now, self._arriving[0][0])
        while self._arriving and self._arriving[0][0] <= self.now:
            self._take_in(self._arriving.popleft()[1])
        self._dropped = self._drop_late() if self._has_deadlines else []
        if self._waiting:
            self._admit()
        self._chosen, self._step_ends = (), []
        if self._running:
            self._choose()

    def _end_tick(self) -> list[SimulatedGeneration]:
        ended = self._dropped
        if self._step_ends:
            self._step(self._num_steps_to_run())
        self._step_ends = None
        if self._denoised:
            ended += self._decode()
        return ended

    def _take_in(self, generation: SimulatedGeneration) -> None:
        if not generation.num_steps_left:
            self._denoised.append(generation)
        elif generation.step_index:
            generation.has_begun = True
            self._running.append(generation)
        else:
            self._waiting.append(generation)

    def _drop_late(self) -> list[SimulatedGeneration]:
        dropped = []
        for members in (self._waiting, self._running, self._denoised):
            for one in [
                one for one in members if one.deadline_at is not None and self.now >= one.deadline_at
            ]:
                members.remove(one)
                one.ended_at = math.inf
                dropped.append(one)
        return dropped

    def _admit(self) -> None:
        admitted = self._policy.admit(self._waiting, self._running, self.now)
        for one in self._side_work.to_encode(admitted, self._running, self._has_interactive_arrivals):
            self._spend(self._costs.encode_seconds(one.key))
            self._waiting.remove(one)
            self._running.append(one)

    def _choose(self) -> None:
        """Choose a step batch, and find when each of its steps ends until the choice may change."""
        chosen = self._chosen = self._policy.choose(self._running, self.now)
        for one in chosen:
            if not one.has_begun:
                one.has_begun, one.begun_at = True, self.now
        key, num_rows = chosen[0].key, sum(one.num_rows for one in chosen)
        num_steps, full_seconds = self._num_steps_alike(chosen), self._costs.step_seconds(key, num_rows)
        caching = any(one.step_cache > 1 for one in chosen)
        ends, at = [], self.now
        for step in range(num_steps):
            at += self._step_seconds(chosen, key, num_rows, step) if caching else full_seconds
            ends.append(at)
        self._step_ends = ends

    def _num_steps_to_run(self) -> int:
        """Of the planned steps, those that begin before something arrives, or before the pause."""
        ends = self._step_ends or []
        at = min(self._pauses_at, self._arriving[0][0]) if self._arriving else self._pauses_at
        return min(len(ends), bisect_left(ends, at) + 1)

    def _step(self, num_steps: int) -> None:
        chosen, ends, started_at = self._chosen, (self._step_ends or [])[:num_steps], self.now
        is_interactive = any(one.lane == "interactive" for one in chosen)
        num_rows = sum(one.num_rows for one in chosen)
        begun_at = started_at
        for ended_at in ends:
            self.now = ended_at
            self._side_work.stepped(ended_at - begun_at, is_interactive=is_interactive)
            begun_at = ended_at
        self.busy_seconds += self.now - started_at
        self.num_steps += num_steps
        self.num_row_steps += num_steps * num_rows
        self._policy.stepped(chosen[0].key, self.now - started_at)
        for one in chosen:
            one.step_index += num_steps
            if not one.num_steps_left:
                self._running.remove(one)
                self._denoised.append(one)

    def _num_steps_alike(self, chosen: Sequence[SimulatedGeneration]) -> int:
        """Steps for which `chosen` may run before the policy is asked again."""
        if self._has_deadlines:
            return 1
        num_steps = min(one.num_steps_alike for one in chosen)
        if self._waiting or self._denoised:
            beside = (*self._waiting, *self._denoised)
            is_bulk_waiting = chosen[0].lane == "interactive" and all(one.lane == "bulk" for one in beside)
            return min(num_steps, self._steps_per_choice) if is_bulk_waiting else 1
        if len(chosen) < len(self._running) and len({(m.key, m.lane, m.account) for m in self._running}) > 1:
            return min(num_steps, self._steps_per_choice)
        return num_steps

    def _step_seconds(
        self, chosen: Sequence[SimulatedGeneration], key: BatchKey, num_rows: int, step: int
    ) -> float:
        """Every row runs the cached part of a step; the rows of full steps run the rest too."""
        seconds = self._costs.step_seconds(key, num_rows)
        num_full_rows = sum(one.num_rows for one in chosen if one.runs_fully(step))
        if num_full_rows == num_rows:
            return seconds
        share = self._costs.cached_share(key)
        full_seconds = self._costs.step_seconds(key, num_full_rows) if num_full_rows else 0.0
        return share * seconds + (1 - share) * full_seconds

    def _decode(self) -> list[SimulatedGeneration]:
        ended = []
        ordered = self._policy.order(self._denoised, self.now)
        for one in self._side_work.to_decode(ordered, self._running, self._has_interactive_arrivals):
            self._spend(self._costs.decode_seconds(one.key))
            self._denoised.remove(one)
            one.ended_at = self.now
            ended.append(one)
        return ended

    def _spend(self, seconds: float) -> None:
        self.now += seconds
        self.busy_seconds += seconds

    def _has_interactive_arrivals(self) -> bool:
        for at, one in self._arriving:
            if at > self.now:
                break
            if one.lane == "interactive":
                return True
        return False
