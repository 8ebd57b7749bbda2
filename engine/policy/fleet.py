"""Simulates a fleet: jobs wait in the order of their dispatch, and free slots of workers take them.

Owns that rule, the slots, and the instants of each job. Estimates, the planner and the benchmarks share it.
Each worker has a `SimulatedDevice`, so that the policy is the engine's own; the fleet runs on its clock, in
events. It does not know what a job costs, rows of Postgres, nor how jobs arrive.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Generic, NamedTuple, Protocol, TypeVar

from catalogue.lanes import LANES
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

    @property
    def num_jobs(self) -> int:
        """Jobs that hold a slot."""
        return self.num_taken.total()

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

    A job goes to the worker with the fewest jobs among those with a free slot of its lane, and of several to
    the one that has waited longest. If none has one, it waits; a slot that gets free takes the job of its
    lane, and of its worker's tiers, that was dispatched first. Jobs and workers may be added, and workers
    drained, while it runs, at instants that have not passed.
    """

    def __init__(
        self,
        workers: Iterable[SimulatedWorker[J]] = (),
        overheads: Overheads = Overheads(),
        *,
        now: float = 0.0,
    ) -> None:
        self.now = now
        self.workers: list[SimulatedWorker[J]] = []  # those that have started and not stopped
        self.overheads = overheads
        self._waiting: dict[tuple[str, str, bool], deque[Run[J]]] = {}
        self._free: dict[tuple[WorkerKind, str], _FreeWorkers[J]] = {}
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
        self._list(worker, is_free=False)
        worker.is_draining = True
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
        self._list(worker, is_free=True)
        self._fill(worker)

    def _stop_if_done(self, worker: SimulatedWorker[J]) -> None:
        if worker.is_draining and not worker.num_jobs and worker in self.workers:
            worker.stopped_at = self.now
            self.workers.remove(worker)

    def _dispatch(self, run: Run[J]) -> None:
        """Give the job to a worker, or let it wait. A worker has a free slot only if no job waits for it."""
        job = run.job
        found = [
            free for (kind, lane), free in self._free.items() if free and lane == job.lane and kind.takes(job)
        ]
        if found:
            self._take(run, min(found, key=lambda free: free.least).first())
        else:
            self._waiting.setdefault((job.tier, job.lane, job.is_strict), deque()).append(run)

    def _fill(self, worker: SimulatedWorker[J]) -> None:
        """Give waiting jobs to the free slots of a worker, the first dispatched first."""
        while runs := [
            runs
            for (_, lane, _), runs in self._waiting.items()
            if worker.has_slot(lane) and worker.kind.takes(runs[0].job)
        ]:
            first = min(runs, key=lambda waiting: waiting[0].number)
            run = first.popleft()
            if not first:
                job = run.job
                del self._waiting[job.tier, job.lane, job.is_strict]
            self._take(run, worker)

    def _take(self, run: Run[J], worker: SimulatedWorker[J]) -> None:
        at = self.now + self.overheads.claim_seconds
        self._give(run, worker, worker.generations_of(run.job, at), at)

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
        self._list(worker, is_free=False)
        worker.num_taken[lane] += change
        self._list(worker, is_free=True)

    def _list(self, worker: SimulatedWorker[J], *, is_free: bool) -> None:
        """Note the free slots of a worker, or forget them before its number of jobs changes."""
        for lane in LANES:
            free = self._free.setdefault((worker.kind, lane), _FreeWorkers())
            if is_free and worker.has_slot(lane):
                free.add(worker)
            else:
                free.discard(worker)


class _FreeWorkers(Generic[J]):
    """The workers of one kind with a free slot of one lane, by their number of jobs."""

    def __init__(self) -> None:
        self._by_jobs: dict[int, dict[SimulatedWorker[J], None]] = {}  # in each, the longest waiting first

    def __bool__(self) -> bool:
        return bool(self._by_jobs)

    @property
    def least(self) -> int:
        """The fewest jobs of any of them."""
        return min(self._by_jobs)

    def first(self) -> SimulatedWorker[J]:
        """The one with the fewest jobs."""
        return next(iter(self._by_jobs[self.least]))

    def add(self, worker: SimulatedWorker[J]) -> None:
        """Add a worker with its number of jobs."""
        self._by_jobs.setdefault(worker.num_jobs, {})[worker] = None

    def discard(self, worker: SimulatedWorker[J]) -> None:
        """Take a worker out, if it is there with its number of jobs."""
        alike = self._by_jobs.get(worker.num_jobs)
        if alike is not None:
            alike.pop(worker, None)
            if not alike:
                del self._by_jobs[worker.num_jobs]
