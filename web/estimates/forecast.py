"""Estimates and the load of each lane for requests of the API, from a snapshot that no request waits for.

A thread reads the workload, simulates it, and keeps the result for a second; while requests come, at most one
snapshot is made in a second, and all together take no more than `SHARE` of a processor. A job that was
accepted since is estimated by arithmetic. Without a snapshot that is new enough, or where no estimate is
reliable, jobs are shown without one. An estimate never raises.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from catalogue.states import State
from storage.errors import StorageError
from storage.job_views import Job
from storage.workloads import MAX_QUEUED, KnownJob, LiveDevice, Workload
from web.estimates.determinism import self_test_sides
from web.estimates.eta import seconds_until_drawn

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue

log = structlog.get_logger()

KEPT_SECONDS = 1.0
SHARE = 0.1
"""The share of a processor that the estimates of all processes may take."""
MAX_SAVED_SECONDS = 0.5
"""Processor seconds that may be spent at once after an idle period."""
MAX_AGE_SECONDS = 5.0
"""An older snapshot is not shown, unless it was costly or a new one is being made."""
MAX_PLACE_AGE_SECONDS = 2.0
"""An older snapshot gives a new job no place in its queue."""
MAX_AGED_SECONDS = 60.0
"""The age limit of any snapshot; the only one while a new one is being made, for infrequent requests."""
SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter from others while a snapshot is made. With Python's 5 ms, a request
would wait so long after each of its statements. At other times less than 5 ms costs a POST a tenth."""
MAX_ACCEPTED = 10_000
"""The number of jobs that are remembered until the next snapshot."""

Begin = Callable[[Callable[[], None]], None]
"""Runs the given function, at once or on another thread."""


def on_a_thread(work: Callable[[], None]) -> None:
    """Run `work` on a new thread."""
    threading.Thread(target=work, name="forecast", daemon=True).start()


@dataclass(frozen=True)
class LaneLoad:
    """What the live workers of a tier have to do in one lane, as a snapshot read it."""

    num_live_workers: int
    num_slots: int
    num_busy: int
    num_waiting: int | None  # that wait; None if there are more than were read
    pause_reason: str | None = None  # of a paused tier


@dataclass(frozen=True)
class _Snapshot:
    """The estimates of one moment, in seconds from then."""

    made_at: float
    jobs: dict[str, float] = field(default_factory=dict)
    tiers: dict[str, float] = field(default_factory=dict)
    devices: tuple[LiveDevice, ...] = ()
    loads: dict[tuple[str, str], LaneLoad] = field(default_factory=dict)


@dataclass(frozen=True)
class _Accepted:
    """A job that was accepted since the snapshot was read."""

    at: float
    eta_seconds: float | None
    share_seconds: float  # of its tier's workers, in full step batches


class Forecast:
    """Estimates for the models of `catalogue`; `read` gives the workload and may raise `StorageError`.

    `processor_clock` gives the processor seconds of the calling thread. They are limited; waiting for
    Postgres takes none.
    """

    def __init__(
        self,
        read: Callable[[], Workload],
        catalogue: "Catalogue",
        clock: Callable[[], float] = time.monotonic,
        begin: Begin = on_a_thread,
        processor_clock: Callable[[], float] = time.thread_time,
        *,
        share: float = SHARE,
    ) -> None:
        self._read = read
        self._begin = begin
        self._row_limits = {tier.name: tier.max_step_batch_rows for tier in catalogue.tiers}
        self._self_test_sides = self_test_sides(catalogue)
        self._usual_jobs = _usual_jobs(catalogue)
        self._clock = clock
        self._processor_clock = processor_clock
        self._share = share
        self._lock = threading.Lock()  # held only briefly
        self._is_being_made = False
        self._snapshot: _Snapshot | None = None
        self._accepted: dict[tuple[str, str], dict[str, _Accepted]] = {}  # by tier and lane, and by id
        self._cost_seconds = 0.0  # of the last snapshot
        self._saved_seconds = MAX_SAVED_SECONDS
        self._saved_at = clock()

    def refresh(self) -> None:
        """Begin a new snapshot on another thread, if the last one is older than a second and none is made."""
        with self._lock:
            now = self._clock()
            is_new = self._snapshot is not None and now - self._snapshot.made_at <= KEPT_SECONDS
            if is_new or self._is_being_made or not self._may_spend(now):
                return
            self._is_being_made = True
        try:
            self._begin(self._make_anew)
        except RuntimeError:  # no thread can be started
            log.exception("estimate_failed")
            self._is_being_made = False

    def of_jobs(self, jobs: Iterable[Job]) -> dict[str, float]:
        """Seconds until the images of each job are drawn, by id; jobs without an estimate are left out."""
        wanted = {job.id: (job.tier, job.lane) for job in jobs if _can_be_estimated(job)}
        if not wanted:
            return {}
        self.refresh()
        snapshot, age = self._shown()
        found = {name: _left(snapshot.jobs[name], age) for name in wanted.keys() & snapshot.jobs.keys()}
        with self._lock:
            now = self._clock()
            for name in wanted.keys() - found.keys():
                accepted = self._accepted.get(wanted[name], {}).get(name)
                if accepted is not None and accepted.eta_seconds is not None:
                    found[name] = _left(accepted.eta_seconds, now - accepted.at)
        return found

    def of_tiers(self) -> dict[str, float]:
        """Seconds for a new interactive job of the usual size, steps and guidance, by tier."""
        self.refresh()
        snapshot, age = self._shown()
        return {tier: _left(seconds, age) for tier, seconds in snapshot.tiers.items()}

    def accept(self, job: Job) -> tuple[LaneLoad | None, float | None]:
        """Remember a job that was just dispatched; returns what is before it and its estimate, if known.

        It comes after those of its lane that the snapshot read and that this process accepted since.
        """
        try:
            return self._accept(job)
        except Exception:  # the job is committed: its client must get its id
            log.exception("estimate_failed", job_id=job.id)
            return None, None

    def _accept(self, job: Job) -> tuple[LaneLoad | None, float | None]:
        self.refresh()
        snapshot, age = self._shown()
        load = snapshot.loads.get((job.tier, job.lane))
        known = _known(job)
        share_seconds = _share_seconds(known, snapshot.devices)
        with self._lock:
            since = self._accepted.setdefault((job.tier, job.lane), {})
            eta = self._eta_of_new(known, snapshot, age, since)
            num_since = len(since)
            if num_since < MAX_ACCEPTED:
                since[job.id] = _Accepted(self._clock(), eta, share_seconds)
        if load is None or load.num_waiting is None:
            return load, eta
        # Jobs accepted long ago may have run meanwhile.
        is_known = age <= MAX_PLACE_AGE_SECONDS and load.num_waiting + num_since <= MAX_QUEUED
        return replace(load, num_waiting=load.num_waiting + num_since if is_known else None), eta

    def _eta_of_new(
        self, job: KnownJob, snapshot: _Snapshot, age: float, since: Mapping[str, _Accepted]
    ) -> float | None:
        """The usual job's estimate, corrected for this job's own cost and for those accepted since.

        Between two snapshots this is close enough; the next one simulates the job.
        """
        usual = snapshot.tiers.get(job.tier)
        if usual is None or job.is_strict or job.lane != "interactive" or len(since) >= MAX_ACCEPTED:
            return None
        seconds = usual - min(age, usual)
        seconds += _seconds_alone(job, snapshot.devices)
        seconds -= _seconds_alone(self._usual_jobs[job.tier], snapshot.devices)
        return _left(seconds + sum(one.share_seconds for one in since.values()), 0)

    def _shown(self) -> tuple[_Snapshot, float]:
        """The last snapshot, if it is new enough to be shown, and its age."""
        with self._lock:
            snapshot, now = self._snapshot, self._clock()
            # A costly one is shown twice as long as until the next may be made.
            max_age = max(MAX_AGE_SECONDS, 2 * self._cost_seconds / self._share)
            if self._is_being_made or max_age > MAX_AGED_SECONDS:
                max_age = MAX_AGED_SECONDS
        if snapshot is None or now - snapshot.made_at > max_age:
            return _Snapshot(now), 0.0
        return snapshot, now - snapshot.made_at

    def _may_spend(self, now: float) -> bool:
        self._saved_seconds += self._share * (now - self._saved_at)
        self._saved_seconds, self._saved_at = min(self._saved_seconds, MAX_SAVED_SECONDS), now
        return self._saved_seconds > 0

    def _make_anew(self) -> None:
        started_at, spent_before = self._clock(), self._processor_clock()
        snapshot = _Snapshot(started_at)
        try:
            with _switching_often():
                snapshot = self._make(started_at)
        finally:
            with self._lock:
                self._cost_seconds = self._processor_clock() - spent_before
                self._saved_seconds -= self._cost_seconds
                self._snapshot, self._is_being_made = snapshot, False
                for jobs in self._accepted.values():
                    for job_id in [name for name, one in jobs.items() if one.at <= started_at]:
                        del jobs[job_id]

    def _make(self, now: float) -> _Snapshot:
        try:
            found = self._read()
            claimable = _claimable(found)
            names = {job.id for job in (*claimable.running, *claimable.queued)}
            return _Snapshot(
                made_at=now,
                jobs=self._estimates(claimable, names),
                tiers=self._of_usual_jobs(claimable),
                devices=found.devices,
                loads=_loads(found, self._usual_jobs),
            )
        except StorageError as error:
            log.warning("workload_not_read", error=type(error).__name__)
        except Exception:  # a job is shown without its estimate, never hidden because of it
            log.exception("estimate_failed")
        return _Snapshot(self._clock())

    def _of_usual_jobs(self, found: Workload) -> dict[str, float]:
        etas: dict[str, float] = {}
        for job in self._usual_jobs.values():
            if (job.tier, job.lane) not in found.cut_off and job.tier not in found.pauses:
                behind_all = replace(found, queued=(*found.queued, job))
                etas |= self._estimates(behind_all, {job.id})
        return etas

    def _estimates(self, workload: Workload, job_ids: Iterable[str]) -> dict[str, float]:
        return seconds_until_drawn(workload, set(job_ids), self._row_limits, self._self_test_sides)


@contextmanager
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _can_be_estimated(job: Job) -> bool:
    """Whether the job will be drawn in its turn; a quarantined job waits until it can run alone."""
    is_open = job.state in (State.QUEUED, State.RUNNING)
    return is_open and not job.quarantined and job.cancel_requested_at is None


def _claimable(found: Workload) -> Workload:
    """The same without the queued jobs of paused tiers, whose end nobody can estimate."""
    return replace(found, queued=tuple(job for job in found.queued if job.tier not in found.pauses))


def _left(seconds: float, age: float) -> float:
    return round(max(0.0, seconds - age), 2)


def _loads(found: Workload, tiers: Iterable[str]) -> dict[tuple[str, str], LaneLoad]:
    loads = {}
    for tier in tiers:
        live = {device.boot_id: device for device in found.devices if tier in device.tiers}
        for lane in ("interactive", "bulk"):
            num_queued = sum((job.tier, job.lane) == (tier, lane) for job in found.queued)
            loads[tier, lane] = LaneLoad(
                num_live_workers=len(live),
                num_slots=sum(device.num_slots(lane) for device in live.values()),
                num_busy=sum(job.lane == lane and job.boot_id in live for job in found.running),
                # Without a live worker its queue was not read.
                num_waiting=None if (tier, lane) in found.cut_off or not live else num_queued,
                pause_reason=found.pauses.get(tier),
            )
    return loads


def _known(job: Job) -> KnownJob:
    asked = job.parameters
    return KnownJob(
        id=job.id,
        tier=job.tier,
        lane=job.lane,
        num_images=asked.num_images,
        num_steps=asked.num_inference_steps,
        width=asked.width,
        height=asked.height,
        is_guided=asked.guidance_scale > 1,
        is_strict=asked.needs_repeatable,
        guidance_cutoff=asked.guidance_cutoff,
        step_cache=asked.step_cache,
    )


def _seconds_alone(job: KnownJob, devices: Iterable[LiveDevice]) -> float:
    """Seconds of the job on the slowest of these devices while nothing else runs there."""
    return max((_cost(job, device, num_jobs=1) for device in _measured(job.tier, devices)), default=0.0)


def _share_seconds(job: KnownJob, devices: Iterable[LiveDevice]) -> float:
    """How much later a job behind it ends, if full step batches run on all devices of the tier."""
    measured = _measured(job.tier, devices)
    rate = 0.0
    for device in measured:
        num_jobs = max(1, device.profiles[job.tier].max_rows // _num_rows(job, device))
        rate += num_jobs / _cost(job, device, num_jobs=num_jobs)
    return 1 / rate if rate else 0.0


def _measured(tier: str, devices: Iterable[LiveDevice]) -> list[LiveDevice]:
    return [device for device in devices if tier in device.profiles]


def _num_rows(job: KnownJob, device: LiveDevice) -> int:
    return job.num_images * (device.profiles[job.tier].num_guided_rows if job.is_guided else 1)


def _cost(job: KnownJob, device: LiveDevice, *, num_jobs: int) -> float:
    """Seconds in which the device draws so many such jobs together."""
    profile = device.profiles[job.tier]
    scale = job.num_pixels / profile.num_pixels
    num_guided = job.num_steps * (job.guidance_cutoff if job.is_guided else 0)
    plain_rows, guided_rows = num_jobs * job.num_images, num_jobs * _num_rows(job, device)
    seconds = num_guided * profile.step_seconds(guided_rows)
    seconds += (job.num_steps - num_guided) * profile.step_seconds(plain_rows)
    share_of_full_steps = 1 / job.step_cache
    seconds *= share_of_full_steps + (1 - share_of_full_steps) * profile.cached_share
    return num_jobs * profile.encode_seconds + scale * (seconds + plain_rows * profile.decode_seconds)


def _usual_jobs(catalogue: "Catalogue") -> dict[str, KnownJob]:
    return {
        tier.name: KnownJob(
            id=tier.name,
            tier=tier.name,
            lane="interactive",
            num_images=1,
            num_steps=model.default_num_inference_steps,
            width=tier.default_width,
            height=tier.default_height,
            is_guided=model.default_guidance_scale > 1,
        )
        for model in catalogue.models
        for tier in model.tiers
    }
