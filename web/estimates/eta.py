"""When jobs will be drawn: live workers are simulated under the engine's own policy until the jobs end.

Owns the order in which jobs reach workers: free slots take queued jobs in the order of their dispatch. Which
generations share a step batch, and when, is simulated by `engine.policy.simulation`; costs come from the
profiles. It ignores future jobs, failures, accounts, deadlines, and the time to encode and upload files.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import heappop, heappush

from catalogue.determinism import NOT_REPEATABLE, PINNED_ROWS
from catalogue.profile import Profile
from engine.policy.candidate import BatchKey
from engine.policy.policy import Policy
from engine.policy.simulation import COARSE_STEPS, SimulatedDevice, SimulatedGeneration
from storage.workloads import KnownJob, LiveDevice, Workload
from web.estimates.determinism import sharing_on


def seconds_until_drawn(
    workload: Workload,
    job_ids: Collection[str],
    row_limits: Mapping[str, int],
    self_test_sides: Mapping[str, int],
) -> dict[str, float]:
    """Seconds from now until the last image of each job; jobs without a reliable estimate are left out.

    By tier, `row_limits` gives the configured cap and `self_test_sides` the side in pixels of the square at
    which workers tested themselves.
    """
    jobs = (*workload.running, *workload.queued)
    busy = {job.tier for job in jobs}
    known, unknown, workers = set[str](), set[str](), []
    for device in workload.devices:
        unmeasured = set(device.tiers) - device.profiles.keys()
        unknown |= unmeasured
        if unmeasured & busy:
            unknown.update(device.tiers)
        else:
            known.update(device.tiers)
            workers.append(_Worker(device, workload.running, row_limits, self_test_sides))
    wanted = {
        job.id
        for job in jobs
        if job.id in job_ids and job.tier in known - unknown
        if not job.is_strict or _has_known_sharing(job, workload.devices, self_test_sides)
    }
    return _ends(workers, workload.queued, wanted) if wanted else {}


def _has_known_sharing(job: KnownJob, devices: Iterable[LiveDevice], sides: Mapping[str, int]) -> bool:
    """Whether every device that may draw the job lets it share step batches with the same others."""
    found = {
        sharing_on(job, device.determinism, sides.get(job.tier))
        for device in devices
        if job.tier in device.tiers and job.boot_id in (None, device.boot_id)
    }
    return len(found) == 1 and None not in found


def _ends(workers: list["_Worker"], queued: Iterable[KnownJob], wanted: set[str]) -> dict[str, float]:
    """Simulate until all `wanted` jobs have ended; return the seconds from now until each of them ends."""
    queue = _Queue(queued)
    queue.fill(workers, 0.0)
    ends = {job_id: 0.0 for worker in workers for job_id in worker.drawn if job_id in wanted}
    events: list[tuple[float, int, dict[str, float]]] = []

    def simulate(index: int) -> None:
        if ended := workers[index].run_until_jobs_end():
            heappush(events, (workers[index].device.now, index, ended))

    for index in range(len(workers)):
        simulate(index)
    while events and ends.keys() < wanted:
        now, index, ended = heappop(events)
        ends |= {job_id: max(0.0, ended_at) for job_id, ended_at in ended.items() if job_id in wanted}
        queue.fill([workers[index]], max(0.0, now))
        simulate(index)
    return ends


class _Queue:
    """The queued jobs, by tier, lane and whether they are strict: in each group only the oldest is next."""

    def __init__(self, jobs: Iterable[KnownJob]) -> None:
        self._waiting: dict[tuple[str, str, bool], deque[tuple[int, KnownJob]]] = {}
        for order, job in enumerate(jobs):
            self._waiting.setdefault((job.tier, job.lane, job.is_strict), deque()).append((order, job))

    def fill(self, workers: Iterable["_Worker"], now: float) -> None:
        """Give jobs to free slots, the first dispatched first, each to the worker with the fewest jobs."""
        while takers := {
            kind: free
            for kind in self._waiting
            if (free := [worker for worker in workers if worker.has_slot(*kind)])
        }:
            kind = min(takers, key=lambda kind: self._waiting[kind][0][0])
            _, job = self._waiting[kind].popleft()
            if not self._waiting[kind]:
                del self._waiting[kind]
            min(takers[kind], key=lambda worker: len(worker.jobs)).take(job, now)


class _Worker:
    """A worker with its simulated device; it is also the `Costs` of that device."""

    def __init__(
        self,
        facts: LiveDevice,
        running: Iterable[KnownJob],
        row_limits: Mapping[str, int],
        self_test_sides: Mapping[str, int],
    ) -> None:
        self.jobs: dict[str, KnownJob] = {}
        self._facts = facts
        self._row_limits = row_limits
        self._self_test_sides = self_test_sides
        self._num_images_left: dict[str, int] = {}  # by job
        self._job_ids: dict[SimulatedGeneration, str] = {}
        self.drawn: list[str] = []  # jobs that have ended since their progress was written
        self.device = self._new_device()
        mine = [one for one in running if one.boot_id == facts.boot_id and one.tier in facts.profiles]
        self._catch_up(mine)

    def _catch_up(self, jobs: Sequence[KnownJob]) -> None:
        """Begin with the running jobs and the steps that they ran since their progress was written.

        The simulation of that time assumes that the jobs that run now are those that ran then.
        """
        generations = {job.id: self._generations(job, -job.seconds_running) for job in jobs}
        for images in generations.values():
            for one in images:
                self.device.submit(one, 0.0)
        lag_of = {job.id: min(self._facts.seconds_since_seen, job.seconds_since_progress) for job in jobs}
        steps: dict[SimulatedGeneration, int] = {}
        seconds_to_end_of_step = [0.0] if not jobs else []
        for job in sorted(jobs, key=lambda job: lag_of[job.id]):
            self.device.run_until(lag_of[job.id])
            seconds_to_end_of_step.append(max(0.0, self.device.now - lag_of[job.id]))
            steps |= {one: one.step_index for one in generations[job.id] if math.isnan(one.ended_at)}
        self.device = self._new_device(now=min(seconds_to_end_of_step))
        for job in jobs:
            images = [one for one in generations[job.id] if one in steps]
            for one in images:
                one.step_index, one.has_begun, one.ended_at = steps[one], steps[one] > 0, math.nan
            if images:
                self._submit(job, images, 0.0)
            else:
                self.drawn.append(job.id)

    def has_slot(self, tier: str, lane: str, is_strict: bool) -> bool:
        """Whether the worker has a free slot for such a job now."""
        if is_strict and self._facts.determinism == NOT_REPEATABLE:
            return False
        num_taken = sum(job.lane == lane for job in self.jobs.values())
        return tier in self._facts.tiers and num_taken < self._facts.num_slots(lane)

    def take(self, job: KnownJob, at: float) -> None:
        """Start the job at the time `at`."""
        self._submit(job, self._generations(job, at), at)

    def _submit(self, job: KnownJob, generations: Sequence[SimulatedGeneration], at: float) -> None:
        self.jobs[job.id] = job
        self._num_images_left[job.id] = len(generations)
        for one in generations:
            self._job_ids[one] = job.id
            self.device.submit(one, at)

    def _generations(self, job: KnownJob, submitted_at: float) -> list[SimulatedGeneration]:
        """The images of the job, all of them at its mean progress."""
        # If this is unknown, the job gets no estimate, and those behind it get one for the worst case.
        sharing = sharing_on(job, self._facts.determinism, self._self_test_sides.get(job.tier)) or "none"
        return [
            SimulatedGeneration(
                BatchKey(job.tier, job.height, job.width, sharing != "any", sharing == "none"),
                job.num_steps,
                self._facts.profiles[job.tier].num_guided_rows,
                math.ceil(job.guidance_cutoff * job.num_steps) if job.is_guided else 0,
                job.step_cache,
                job.lane,
                submitted_at=submitted_at,
                step_index=round(job.num_steps * job.progress),
            )
            for _ in range(job.num_images)
        ]

    def _new_device(self, now: float = 0.0) -> SimulatedDevice:
        policy = Policy(
            self._max_rows, step_seconds=self.step_seconds, bucket_rows=lambda _, num_rows: num_rows
        )
        return SimulatedDevice(policy, self, now=now, steps_per_choice=COARSE_STEPS)

    def run_until_jobs_end(self) -> dict[str, float]:
        """Simulate until the next jobs end; return their end times by id, empty if no job is left."""
        ended: dict[str, float] = {}
        while not ended and (drawn := self.device.advance()):
            for one in drawn:
                job_id = self._job_ids.pop(one)
                self._num_images_left[job_id] -= 1
                if not self._num_images_left[job_id]:
                    del self.jobs[job_id]
                    ended[job_id] = one.ended_at
        return ended

    def step_seconds(self, key: BatchKey, num_rows: int) -> float:
        """Seconds of a full step; one that only strict generations share is padded to `PINNED_ROWS`."""
        profile, scale = self._cost(key)
        return scale * profile.step_seconds(max(num_rows, PINNED_ROWS if key.is_pinned else 1))

    def cached_share(self, key: BatchKey) -> float:
        """Seconds of a step in which every row is cached, divided by those of a full step."""
        return self._cost(key)[0].cached_share

    def encode_seconds(self, key: BatchKey) -> float:
        """Seconds of encoding, which does not depend on the size."""
        return self._cost(key)[0].encode_seconds

    def decode_seconds(self, key: BatchKey) -> float:
        """Seconds of decoding, in proportion to the pixels of the measured size."""
        profile, scale = self._cost(key)
        return scale * profile.decode_seconds

    def _cost(self, key: BatchKey) -> tuple[Profile, float]:
        profile = self._facts.profiles[key.model]
        return profile, key.latent_height * key.latent_width / profile.num_pixels

    def _max_rows(self, key: BatchKey) -> int:
        max_rows = self._facts.profiles[key.model].max_rows
        return min(max_rows, self._row_limits.get(key.model, max_rows))
