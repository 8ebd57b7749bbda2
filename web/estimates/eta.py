"""When jobs will be drawn: the workload of live workers played through to its end, by their profiles.

Pure arithmetic on what `storage.workloads` read. Devices take queued jobs into free slots in the order of
their bells; on a device interactive work goes first, tiers and sizes take turns, and the oldest generations
share a step up to the cap of its profile, but for strict ones, which have the mates that the promise of the
device leaves them. A generation's encoding and decoding are spread over its steps.
It does not estimate_of new jobs, bulk's ageing, failures, or the seconds of files and uploads.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from storage.workloads import KnownJob, LiveDevice, Workload
from web.estimates.determinism import PINNED_ROWS, UNKEPT, mates_of
from web.estimates.foreseen import EstimatedGeneration, estimate_of, shared_step_seconds


def honest_tiers(workload: Workload) -> frozenset[str]:
    """The tiers of which every live worker has a profile, as of its other tiers that have work."""
    known, unknown = set[str](), set[str]()
    busy = _busy_tiers(workload)
    for device in workload.devices:
        unmeasured = set(device.tiers) - device.profiles.keys()
        (unknown if unmeasured & busy else known).update(device.tiers)
        unknown.update(unmeasured)
    return frozenset(known - unknown)


def seconds_until_drawn(
    workload: Workload,
    job_ids: Collection[str],
    row_limits: Mapping[str, int],
    self_test_sides: Mapping[str, int],
) -> dict[str, float]:
    """Seconds from now until the last image of each job; a job that cannot be told of honestly is left out.

    `row_limits` gives the configured cap of each tier, `self_test_sides` the size at which its workers tested
    themselves (`web.estimates.determinism`).
    """
    honest = honest_tiers(workload)
    jobs = {job.id: job for job in (*workload.running, *workload.queued)}
    wanted = {
        job_id
        for job_id in job_ids
        if job_id in jobs and jobs[job_id].tier in honest
        if _has_known_mates(jobs[job_id], workload, self_test_sides)
    }
    return _Simulation(workload, row_limits, self_test_sides).until(wanted) if wanted else {}


def _has_known_mates(job: KnownJob, workload: Workload, self_test_sides: Mapping[str, int]) -> bool:
    """Whether it is known with whom the job shares steps, whichever device may draw it."""
    if not job.strict:
        return True
    side = self_test_sides.get(job.tier)
    found = {
        mates_of(job, device.determinism, side)
        for device in workload.devices
        if job.tier in device.tiers and job.boot_id in (None, device.boot_id)
    }
    return len(found) == 1 and None not in found


def _busy_tiers(workload: Workload) -> set[str]:
    return {job.tier for job in (*workload.running, *workload.queued)}


@dataclass
class _Device:
    """A device in the play: what it holds, and until when that has been played."""

    facts: LiveDevice
    row_limits: Mapping[str, int]
    self_test_sides: Mapping[str, int]
    generations: list[EstimatedGeneration] = field(default_factory=list)
    held: dict[str, list[str]] = field(default_factory=lambda: {"interactive": [], "bulk": []})
    now: float = 0.0
    version: int = 0  # of what it holds: an event foreseen before that changed is void

    @property
    def num_held(self) -> int:
        """Jobs, of both lanes."""
        return sum(map(len, self.held.values()))

    def has_slot(self, tier: str, lane: str, is_strict: bool) -> bool:
        """Whether it would take such a job now, and keep it."""
        if is_strict and self.facts.determinism == UNKEPT:
            return False
        return tier in self.facts.tiers and len(self.held[lane]) < self.facts.num_slots(lane)

    def take(self, job: KnownJob, order: int, now: float) -> None:
        """Begin the job, or go on with it."""
        self.simulate_until(now)
        self.held[job.lane].append(job.id)
        # Where that is not known, nobody is told of the job, and those behind it of the worst.
        found = mates_of(job, self.facts.determinism, self.self_test_sides.get(job.tier)) or "nobody"
        self.generations += estimate_of(job, order, self.facts.profiles[job.tier], found)

    def simulate_until(self, now: float) -> None:
        """Let what is in step batches go on at its rate."""
        for one in self.generations:
            one.steps_left = max(0.0, one.steps_left - one.rate * (now - self.now))
        self.now = now

    def catch_up(self) -> None:
        """Add the steps since progress was last written: by itself, or with a heartbeat."""
        self.settle()
        for one in self.generations:
            seconds = min(self.facts.seconds_since_seen, one.job.seconds_since_progress)
            one.steps_left = max(0.0, one.steps_left - one.rate * seconds)

    def settle(self) -> None:
        """Choose the step batches anew: the rate of every generation until the next event."""
        self.version += 1
        for one in self.generations:
            one.rate = 0.0
        is_urgent = any(one.job.lane == "interactive" for one in self.generations)
        urgent = [one for one in self.generations if one.job.lane == "interactive" or not is_urgent]
        keys = {one.key for one in urgent}
        for key in keys:
            members = [one for one in self.generations if one.key == key]
            members.sort(key=lambda one: (is_urgent and one.job.lane != "interactive", one.order))
            self._share_steps(members, len(keys))

    def _share_steps(self, members: list[EstimatedGeneration], num_keys: int) -> None:
        job = members[0].job
        profile = self.facts.profiles[job.tier]
        max_rows = min(profile.max_rows, self.row_limits.get(job.tier, profile.max_rows))
        if members[0].mates != "anybody":
            max_rows = PINNED_ROWS if members[0].mates == "strict" else 1
        batch, num_rows = [members[0]], members[0].num_rows
        for one in members[1:]:
            if num_rows >= max_rows:
                break
            if num_rows + one.num_rows <= max_rows:
                batch.append(one)
                num_rows += one.num_rows
        scale = job.num_pixels / profile.num_pixels
        seconds = scale * shared_step_seconds(profile, batch)
        ends_seconds = profile.encode_seconds + scale * profile.decode_seconds
        seconds += sum(ends_seconds / one.job.num_steps for one in batch)
        for one in batch:
            one.rate = 1 / (seconds * num_keys)

    def next_event(self) -> float | None:
        """When the next generation is drawn or changes its rows, if nothing else happens until then."""
        ends = [
            self.now + (0.0 if one.is_drawn else one.steps_until_change / one.rate)
            for one in self.generations
            if one.is_drawn or one.rate
        ]
        return min(ends, default=None)

    def drop_drawn(self) -> list[KnownJob]:
        """Let go of what has been drawn; the jobs that have ended with it."""
        drawn = [one for one in self.generations if one.is_drawn]
        self.generations = [one for one in self.generations if not one.is_drawn]
        left = {one.job.id for one in self.generations}
        ended = {one.job.id: one.job for one in drawn if one.job.id not in left}
        for job in ended.values():
            self.held[job.lane].remove(job.id)
        return list(ended.values())


class _Simulation:
    """The devices, what waits for them, and the time."""

    def __init__(
        self, workload: Workload, row_limits: Mapping[str, int], self_test_sides: Mapping[str, int]
    ) -> None:
        busy = _busy_tiers(workload)
        honest = [one for one in workload.devices if not (busy & set(one.tiers)) - one.profiles.keys()]
        self._devices = {one.boot_id: _Device(one, row_limits, self_test_sides) for one in honest}
        for order, job in enumerate(workload.running):
            device = self._devices.get(job.boot_id or "")
            if device is not None and job.tier in device.facts.profiles:
                device.take(job, order, 0.0)
        # By tier, lane and whether they are strict.
        self._waiting: dict[tuple[str, str, bool], deque[tuple[int, KnownJob]]] = {}
        for order, job in enumerate(workload.queued, start=len(workload.running)):
            self._waiting.setdefault((job.tier, job.lane, job.strict), deque()).append((order, job))
        for device in self._devices.values():
            device.catch_up()

    def until(self, job_ids: Iterable[str]) -> dict[str, float]:
        """Play until all of these have ended; when each of them did."""
        wanted, found = set(job_ids), dict[str, float]()
        self._fill(self._devices.values(), 0.0)
        events: list[tuple[float, str, int]] = []
        for boot_id in self._devices:
            self._estimate(boot_id, events)
        while events and found.keys() < wanted:
            now, boot_id, version = heappop(events)
            device = self._devices[boot_id]
            if version != device.version:
                continue
            device.simulate_until(now)
            ended = device.drop_drawn()
            found |= {job.id: now for job in ended if job.id in wanted}
            self._fill([device], now)
            self._estimate(boot_id, events)
        return found

    def _estimate(self, boot_id: str, events: list[tuple[float, str, int]]) -> None:
        at = self._devices[boot_id].next_event()
        if at is not None:
            heappush(events, (at, boot_id, self._devices[boot_id].version))

    def _fill(self, devices: Iterable[_Device], now: float) -> None:
        """Give waiting jobs to free slots, the oldest bell first, to the device that holds the least."""
        choice = list(devices)
        while True:
            # Only the first of a place can be next, however many wait behind it.
            takers = {
                place: free
                for place in self._waiting
                if (free := [device for device in choice if device.has_slot(*place)])
            }
            if not takers:
                break
            place = min(takers, key=lambda place: self._waiting[place][0][0])
            order, job = self._waiting[place].popleft()
            if not self._waiting[place]:
                del self._waiting[place]
            min(takers[place], key=lambda device: device.num_held).take(job, order, now)
        for device in choice:
            device.settle()
