"""Simulates a fleet: jobs wait for a free slot, and a worker with one takes them.

Owns the slots and the instants of each job; `free_workers` chooses among workers with a free slot. Estimates,
the planner and the benchmarks share it. Each worker has a `SimulatedDevice`, so that the policy is the
engine's own; the fleet runs on its clock, in events. It does not know what a job costs, rows of Postgres, nor
how jobs arrive.
"""

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Generic, NamedTuple, Protocol, TypeVar

from catalogue.lanes import LANES
from engine.policy.free_workers import Choose, FreeWorkers, first_to_poll, joined
from engine.policy.simulation import SimulatedDevice, SimulatedGeneration


class Job(Protocol):
    """The facts of a job that decide which worker may take it."""

    @property
    def tier(self) -> str:
        """The tier that a worker must serve."""

    @property
    def lane(self) -> str:
        """The lane whose slot it takes."""

    @property
    def is_strict(self) -> bool:
        """Whether its image must have the bits that it has alone, whatever runs beside it."""


J = TypeVar("J", bound=Job)
SEED = 1
"""Of the choice among workers with a free slot, so that a simulation repeats."""


class WorkerKind(NamedTuple):
    """What a worker takes: its tiers, its slots of each lane, and whether it takes strict jobs."""

    tiers: frozenset[str]
    interactive_slots: int
    bulk_slots: int
    takes_strict: bool = True

    def num_slots(self, lane: str) -> int:
        """Jobs of the lane that it holds at once."""
        return self.bulk_slots if lane == "bulk" else self.interactive_slots

    def takes(self, job: Job) -> bool:
        """Whether it may run such a job."""
        return job.tier in self.tiers and (self.takes_strict or not job.is_strict)


@dataclass(frozen=True)
class Overheads:
    """Seconds of a job that are not on the device, the same for every job."""

    accept_seconds: float = 0.0  # from its arrival until workers see it
    claim_seconds: float = 0.0  # from then, and a free slot, until the engine has it
    image_seconds: float = 0.0  # file and upload of each image, one after the other
    finish_seconds: float = 0.0  # from its last upload until its slot is free
    answer_seconds: float = 0.0  # from then until its client has the answer
    waits_for_polls: bool = False  # whether it also waits until one of several workers polls


@dataclass(eq=False, slots=True)
class Run(Generic[J]):
    """A job in the fleet, and its instants in seconds: infinite if an image misses its deadline."""

    job: J
    arrived_at: float
    number: int  # in the order of dispatch
    worker: "SimulatedWorker[J] | None" = None
    taken_at: float = math.inf
    begun_at: float = math.inf  # its first step
    drawn_at: float = 0.0  # the last image so far
    ended_at: float = math.inf  # the answer
    num_images: int = 0
    num_images_left: int = 0

    @property
    def latency_seconds(self) -> float:
        """Seconds from its arrival to its end."""
        return self.ended_at - self.arrived_at


@dataclass(eq=False)
class SimulatedWorker(Generic[J]):
    """A worker: what it takes, its device, and the generations that it makes of a job at an instant."""

    kind: WorkerKind
    device: SimulatedDevice
    generations_of: Callable[[J, float], Sequence[SimulatedGeneration]]
    name: str = ""
    started_at: float = 0.0
    stopped_at: float = math.inf
    is_draining: bool = field(default=False, init=False)
    num_taken: Counter[str] = field(default_factory=Counter, init=False)  # slots, by lane
    runs: dict[SimulatedGeneration, Run[J]] = field(default_factory=dict, init=False)
    turns: list[str] = field(init=False)  # its tiers, of which the first has its turn

    def __post_init__(self) -> None:
        self.turns = sorted(self.kind.tiers)

    @property
    def num_jobs(self) -> int:
        """Jobs that hold a slot."""
        return self.num_taken.total()

    @property
    def num_interactive(self) -> int:
        """Interactive jobs that hold a slot, by which it pauses between polls."""
        return self.num_taken["interactive"]

    def has_slot(self, lane: str) -> bool:
        """Whether a slot of the lane is free."""
        return not self.is_draining and self.num_taken[lane] < self.kind.num_slots(lane)


class _Event(NamedTuple):
    """Something at an instant; at one instant jobs arrive first, then slots get free, then devices go on."""

    at: float
    rank: int
    number: int
    act: Callable[[], object]


_ARRIVAL, _END, _DEVICE = range(3)


class SimulatedFleet(Generic[J]):
    """Runs jobs on workers; `now` is its clock, in seconds.

    `choose` gives a job to one of the workers with a free slot of its lane; `seed` is of its chance. If none
    has one, the job waits. An interactive slot that gets free takes the job that was dispatched first, of the
    tier whose turn it is on its worker: as `tasks.queues.PingsFirst` does, a tier that was served goes last.
    A bulk slot takes the first of all tiers: turns of accounts, and that a worker claims several bulk jobs at
    once, are left out. Jobs and workers may be added, and workers drained, while it runs, at instants that
    have not passed.
    """

    def __init__(
        self,
        workers: Iterable[SimulatedWorker[J]] = (),
        overheads: Overheads = Overheads(),
        *,
        now: float = 0.0,
        seed: int = SEED,
        choose: Choose = first_to_poll,
    ) -> None:
        self.now = now
        self.workers: list[SimulatedWorker[J]] = []  # those that have started and not stopped
        self.overheads = overheads
        self._waiting: dict[tuple[str, str, bool], deque[Run[J]]] = {}
        self._free: dict[tuple[WorkerKind, str], FreeWorkers[SimulatedWorker[J]]] = {}
        self._choose = choose
        self._chance = random.Random(seed)
        self._events: list[_Event] = []
        self._numbers = count()
        self._due_at: dict[SimulatedWorker[J], float] = {}  # when its device goes on, by worker
        self._ended: deque[Run[J]] = deque()
        for worker in workers:
            self._start(worker)

    def submit(self, job: J, at: float) -> Run[J]:
        """Let a job arrive at an instant; at one instant, the first submitted is dispatched first."""
        run = Run(job, at, next(self._numbers))
        self._at(at + self.overheads.accept_seconds, _ARRIVAL, lambda: self._dispatch(run))
        return run

    def hold(self, job: J, worker: SimulatedWorker[J], generations: Sequence[SimulatedGeneration]) -> Run[J]:
        """Let a worker run a job of these generations from now on, whether or not a slot is free."""
        run = Run(job, self.now, next(self._numbers))
        self._give(run, worker, generations, self.now)
        return run

    def add(self, worker: SimulatedWorker[J], at: float) -> None:
        """Let a worker take jobs from an instant on: now, and the seconds that its start takes."""
        self._at(at, _END, lambda: self._start(worker))

    def drain(self, worker: SimulatedWorker[J]) -> None:
        """Let a worker take nothing more from now on; it stops when its jobs have ended."""
        worker.is_draining = True
        self._list(worker)
        self._stop_if_done(worker)

    @property
    def num_waiting(self) -> int:
        """Jobs that no worker has taken."""
        return sum(map(len, self._waiting.values()))

    def waiting(self) -> Iterator[Run[J]]:
        """The jobs that no worker has taken, those of a tier and lane in their order."""
        for runs in self._waiting.values():
            yield from runs

    def run(self) -> Iterator[Run[J]]:
        """Run until no job is left that a worker can take; yields each job when it ends."""
        yield from self.run_until(math.inf)

    def run_until(self, at: float) -> Iterator[Run[J]]:
        """Run to an instant; yields each job when it ends. What is due at that instant is done."""
        while self._events and self._events[0].at <= at:
            event = heappop(self._events)
            self.now = max(self.now, event.at)
            event.act()
            while self._ended:
                yield self._ended.popleft()
        if at < math.inf:
            self.now = max(self.now, at)

    def _at(self, at: float, rank: int, act: Callable[[], object]) -> None:
        heappush(self._events, _Event(at, rank, next(self._numbers), act))

    def _start(self, worker: SimulatedWorker[J]) -> None:
        worker.started_at = self.now
        worker.device.now = max(worker.device.now, self.now)
        self.workers.append(worker)
        self._list(worker)
        self._fill(worker)

    def _stop_if_done(self, worker: SimulatedWorker[J]) -> None:
        if worker.is_draining and not worker.num_jobs and worker in self.workers:
            worker.stopped_at = self.now
            self.workers.remove(worker)

    def _dispatch(self, run: Run[J]) -> None:
        """Give the job to a worker, or let it wait. A worker has a free slot only if no job waits for it."""
        job = run.job
        found = [
            free.by_jobs
            for (kind, lane), free in self._free.items()
            if free.by_jobs and lane == job.lane and kind.takes(job)
        ]
        if found:
            worker, seconds = self._choose(joined(found), self._chance)
            waits = self.overheads.waits_for_polls and self._has_others(worker)
            self._take(run, worker, seconds if waits else 0.0)
        else:
            self._waiting.setdefault((job.tier, job.lane, job.is_strict), deque()).append(run)

    def _has_others(self, worker: SimulatedWorker[J]) -> bool:
        return any(one is not worker and one.kind.tiers & worker.kind.tiers for one in self.workers)

    def _fill(self, worker: SimulatedWorker[J]) -> None:
        """Give waiting jobs to the free slots of a worker."""
        for lane in LANES:
            while worker.has_slot(lane) and (runs := self._waiting_for(worker, lane)):
                run = runs.popleft()
                if not runs:
                    job = run.job
                    del self._waiting[job.tier, job.lane, job.is_strict]
                self._take(run, worker)

    def _waiting_for(self, worker: SimulatedWorker[J], lane: str) -> deque[Run[J]] | None:
        """The jobs of which the worker takes the first, or None."""
        found = [
            runs
            for (_, of_lane, _), runs in self._waiting.items()
            if of_lane == lane and worker.kind.takes(runs[0].job)
        ]
        if lane == "interactive":
            return min(
                found, key=lambda runs: (worker.turns.index(runs[0].job.tier), runs[0].number), default=None
            )
        return min(found, key=lambda runs: runs[0].number, default=None)

    def _take(self, run: Run[J], worker: SimulatedWorker[J], wait_seconds: float = 0.0) -> None:
        job, at = run.job, self.now + wait_seconds + self.overheads.claim_seconds
        if job.lane == "interactive":
            worker.turns.remove(job.tier)
            worker.turns.append(job.tier)
        self._give(run, worker, worker.generations_of(job, at), at)

    def _give(
        self,
        run: Run[J],
        worker: SimulatedWorker[J],
        generations: Sequence[SimulatedGeneration],
        at: float,
    ) -> None:
        run.worker, run.taken_at = worker, self.now
        run.num_images = run.num_images_left = len(generations)
        self._count(worker, run.job.lane, 1)
        for one in generations:
            worker.runs[one] = run
            worker.device.submit(one, at)
        self._watch(worker)

    def _watch(self, worker: SimulatedWorker[J]) -> None:
        """Have the worker's device go on when it changes next, unless that is planned already."""
        at = worker.device.changes_at()
        if at < self._due_at.get(worker, math.inf):
            self._due_at[worker] = at
            self._at(max(at, self.now), _DEVICE, lambda: self._go_on(worker, at))

    def _go_on(self, worker: SimulatedWorker[J], due_at: float) -> None:
        if self._due_at.get(worker) != due_at:
            return  # it went on, or will, at another instant
        del self._due_at[worker]
        for one in worker.device.run_to_change():
            self._note_end(worker, one)
        self._watch(worker)

    def _note_end(self, worker: SimulatedWorker[J], generation: SimulatedGeneration) -> None:
        run = worker.runs.pop(generation)
        run.num_images_left -= 1
        run.begun_at = min(run.begun_at, generation.begun_at)
        run.drawn_at = max(run.drawn_at, generation.ended_at)
        if run.num_images_left:
            return
        if run.drawn_at == math.inf:
            self._at(worker.device.now, _END, lambda: self._end(run, worker))
        else:
            after = run.num_images * self.overheads.image_seconds + self.overheads.finish_seconds
            self._at(generation.ended_at + after, _END, lambda: self._end(run, worker))

    def _end(self, run: Run[J], worker: SimulatedWorker[J]) -> None:
        if run.drawn_at < math.inf:
            run.ended_at = self.now + self.overheads.answer_seconds
        self._count(worker, run.job.lane, -1)
        self._ended.append(run)
        self._fill(worker)
        self._stop_if_done(worker)

    def _count(self, worker: SimulatedWorker[J], lane: str, change: int) -> None:
        worker.num_taken[lane] += change
        self._list(worker)

    def _list(self, worker: SimulatedWorker[J]) -> None:
        """Note the lanes of which a worker has a free slot, and forget the others."""
        for lane in LANES:
            free = self._free.setdefault((worker.kind, lane), FreeWorkers())
            free.discard(worker)
            if worker.has_slot(lane):
                # Bulk jobs are no messages: a worker claims them, whatever else it holds.
                free.add(worker, worker.num_interactive if lane == "interactive" else 0)
