"""Simulates one device with the real policy and a simulated clock, to find when each generation ends.

Drives `Policy` and `SideWork` in the order of `engine.engine.Engine.tick`, and takes seconds from `Costs`
where the engine runs modules. Estimates and benchmarks share it. It does not know jobs, slots, tensors or
errors.
"""

import math
from bisect import insort
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

    @property
    def is_full_step(self) -> bool:
        """Whether the next step runs the whole model."""
        return self.step_cache == 1 or is_full_step(self.step_index, self.step_cache, self.num_steps)


class SimulatedDevice:
    """Runs generations at the pace of `costs`; `now` is its clock, in seconds.

    `policy` must have been given the step seconds of `costs`, so that it learns nothing from steps. While
    several keys, lanes or accounts compete, it chooses again after `steps_per_choice` steps: the engine does
    so after each. While the choice cannot change, one call of `Policy.choose` stands for many steps.
    """

    def __init__(self, policy: Policy, costs: Costs, *, now: float = 0.0, steps_per_choice: int = 1) -> None:
        self.now = now
        self._policy = policy
        self._costs = costs
        self._steps_per_choice = steps_per_choice
        self._side_work = SideWork(lambda: self.now)
        self._arriving: deque[tuple[float, SimulatedGeneration]] = deque()
        self._waiting: list[SimulatedGeneration] = []
        self._running: list[SimulatedGeneration] = []
        self._denoised: list[SimulatedGeneration] = []
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
        while self._arriving or self._waiting or self._running or self._denoised:
            if ended := self._tick():
                return ended
        return []

    def run_until(self, at: float) -> None:
        """Run to the instant `at`, or to the end of the step or image that it falls into."""
        self._pauses_at = at
        while self.now < at and (self._arriving or self._waiting or self._running or self._denoised):
            self._tick()
        self._pauses_at = math.inf

    def _tick(self) -> list[SimulatedGeneration]:
        if not (self._waiting or self._running or self._denoised):
            self.now = max(self.now, self._arriving[0][0])
        while self._arriving and self._arriving[0][0] <= self.now:
            self._take_in(self._arriving.popleft()[1])
        ended = self._drop_late() if self._has_deadlines else []
        if self._waiting:
            self._admit()
        if self._running:
            self._step()
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
            self.now += self._costs.encode_seconds(one.key)
            self._waiting.remove(one)
            self._running.append(one)

    def _step(self) -> None:
        chosen = self._policy.choose(self._running, self.now)
        key, started_at = chosen[0].key, self.now
        num_rows = sum(one.num_rows for one in chosen)
        is_interactive = any(one.lane == "interactive" for one in chosen)
        for one in chosen:
            if not one.has_begun:
                one.has_begun, one.begun_at = True, started_at
        for _ in range(self._num_steps_alike(chosen)):
            seconds = self._step_seconds(chosen, key, num_rows)
            self.now += seconds
            self._side_work.stepped(seconds, is_interactive=is_interactive)
            for one in chosen:
                one.step_index += 1
            if self.now >= self._pauses_at or (self._arriving and self.now >= self._arriving[0][0]):
                break
        self._policy.stepped(key, self.now - started_at)
        for one in chosen:
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

    def _step_seconds(self, chosen: Sequence[SimulatedGeneration], key: BatchKey, num_rows: int) -> float:
        """Every row runs the cached part of a step; the rows of full steps run the rest too."""
        seconds = self._costs.step_seconds(key, num_rows)
        num_full_rows = sum(one.num_rows for one in chosen if one.is_full_step)
        if num_full_rows == num_rows:
            return seconds
        share = self._costs.cached_share(key)
        full_seconds = self._costs.step_seconds(key, num_full_rows) if num_full_rows else 0.0
        return share * seconds + (1 - share) * full_seconds

    def _decode(self) -> list[SimulatedGeneration]:
        ended = []
        ordered = self._policy.order(self._denoised, self.now)
        for one in self._side_work.to_decode(ordered, self._running, self._has_interactive_arrivals):
            self.now += self._costs.decode_seconds(one.key)
            self._denoised.remove(one)
            one.ended_at = self.now
            ended.append(one)
        return ended

    def _has_interactive_arrivals(self) -> bool:
        for at, one in self._arriving:
            if at > self.now:
                break
            if one.lane == "interactive":
                return True
        return False
