"""When jobs will be drawn: live workers are simulated under the engine's own policy until the jobs end.

Owns what a worker is doing at this moment, and which step batches its jobs may share. `engine.policy.fleet`
simulates how jobs reach workers and run, with one outcome of the chance by which a worker with a free slot
gets one; costs come from the profiles. It ignores future jobs, failures, accounts, deadlines, and the time to
encode and upload files.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from catalogue.determinism import NOT_REPEATABLE, PINNED_ROWS
from catalogue.profile import Profile
from engine.policy.candidate import BatchKey
from engine.policy.fleet import SimulatedFleet, SimulatedWorker, WorkerKind
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
    ends = {job_id: 0.0 for worker in workers for job_id in worker.drawn if job_id in wanted}
    fleet = SimulatedFleet(worker.simulated for worker in workers)
    for worker in workers:
        for job, images in worker.held:
            fleet.hold(job, worker.simulated, images)
    for job in queued:
        fleet.submit(job, 0.0)
    for run in fleet.run():
        if run.job.id in wanted:
            ends[run.job.id] = max(0.0, run.drawn_at)
            if ends.keys() >= wanted:
                break
    return ends


class _Worker:
    """A live worker and the jobs that it holds now; it is also the `Costs` of its simulated device."""

    def __init__(
        self,
        facts: LiveDevice,
        running: Iterable[KnownJob],
        row_limits: Mapping[str, int],
        self_test_sides: Mapping[str, int],
    ) -> None:
        self._facts = facts
        self._row_limits = row_limits
        self._self_test_sides = self_test_sides
        self.held: list[tuple[KnownJob, Sequence[SimulatedGeneration]]] = []
        self.drawn: list[str] = []  # jobs that have ended since their progress was written
        mine = [one for one in running if one.boot_id == facts.boot_id and one.tier in facts.profiles]
        kind = WorkerKind(
            frozenset(facts.tiers),
            facts.interactive_slots,
            facts.bulk_slots,
            takes_strict=facts.determinism != NOT_REPEATABLE,
        )
        self.simulated = SimulatedWorker(kind, self._caught_up(mine), self._generations)

    def _caught_up(self, jobs: Sequence[KnownJob]) -> SimulatedDevice:
        """A device at the end of its step, once the running jobs have run since their progress was written.

        The simulation of that time assumes that the jobs that run now are those that ran then.
        """
        device = self._new_device()
        generations = {job.id: self._generations(job, -job.seconds_running) for job in jobs}
        for images in generations.values():
            for one in images:
                device.submit(one, 0.0)
        lag_of = {job.id: min(self._facts.seconds_since_seen, job.seconds_since_progress) for job in jobs}
        steps: dict[SimulatedGeneration, int] = {}
        seconds_to_end_of_step = [0.0] if not jobs else []
        for job in sorted(jobs, key=lambda job: lag_of[job.id]):
            device.run_until(lag_of[job.id])
            seconds_to_end_of_step.append(max(0.0, device.now - lag_of[job.id]))
            steps |= {one: one.step_index for one in generations[job.id] if math.isnan(one.ended_at)}
        for job in jobs:
            images = [one for one in generations[job.id] if one in steps]
            for one in images:
                one.step_index, one.has_begun, one.ended_at = steps[one], steps[one] > 0, math.nan
            if images:
                self.held.append((job, images))
            else:
                self.drawn.append(job.id)
        return self._new_device(now=min(seconds_to_end_of_step))

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
