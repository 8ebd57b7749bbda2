"""Estimates for requests of the API: reads the workload, simulates it, and keeps the result for a second.

An estimate costs a query and some arithmetic, and must never slow the API down. So it runs on a separate
thread, no request waits for it longer than `MAX_WAIT_SECONDS`, and all of them together take no more than
`SHARE` of a processor. Beyond that, jobs are shown without an estimate. An estimate never raises.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from catalogue.states import State
from storage.errors import StorageError
from storage.job_views import Job
from storage.workloads import KnownJob, Workload
from web.estimates.determinism import self_test_sides
from web.estimates.eta import seconds_until_drawn

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue

log = structlog.get_logger()

KEPT_SECONDS = 1.0
SHARE = 0.1
"""The share of a processor that estimates may take."""
MAX_SAVED_SECONDS = 0.5
"""Processor seconds that may be spent at once after an idle period."""
MAX_AGE_SECONDS = 5.0
"""An older snapshot is not shown, unless it was costly or a new one is being made."""
MAX_AGE_IN_COSTS = 20
"""A costly snapshot is shown for this many times its cost: twice as long as until the next may be made."""
MAX_AGED_SECONDS = 60.0
"""The age limit of any snapshot; the only one while a new one is being made, for infrequent requests."""
MAX_WAIT_SECONDS = 0.03
"""A request waits this long for a new snapshot, and then takes the last one."""

Begin = Callable[[Callable[[], None]], None]
"""Runs the given function, at once or on another thread."""


def on_a_thread(work: Callable[[], None]) -> None:
    """Run `work` on a new thread."""
    threading.Thread(target=work, name="forecast", daemon=True).start()


@dataclass(frozen=True)
class _Snapshot:
    """The estimates of one moment, in seconds from then."""

    made_at: float
    known: frozenset[str] = frozenset()  # jobs that were read, with or without an estimate
    jobs: dict[str, float] = field(default_factory=dict)
    tiers: dict[str, float] = field(default_factory=dict)
    has_failed: bool = False  # a failed snapshot applies to all jobs


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
    ) -> None:
        self._read = read
        self._begin = begin
        self._row_limits = {tier.name: tier.max_step_batch_rows for tier in catalogue.tiers}
        self._self_test_sides = self_test_sides(catalogue)
        self._usual_jobs = _usual_jobs(catalogue)
        self._clock = clock
        self._processor_clock = processor_clock
        self._lock = threading.Lock()  # held only briefly
        self._made: threading.Event | None = None  # set when the snapshot in progress is ready
        self._snapshot = _Snapshot(made_at=clock() - 2 * KEPT_SECONDS)
        self._cost_seconds = 0.0  # of the last snapshot
        self._saved_seconds = MAX_SAVED_SECONDS
        self._saved_at = clock()

    def of_jobs(self, jobs: Iterable[Job]) -> dict[str, float]:
        """Seconds until the images of each job are drawn, by id; jobs without an estimate are left out."""
        wanted = {job.id for job in jobs if _can_be_estimated(job)}
        if not wanted:
            return {}
        snapshot, age = self._current(wanted)
        return {name: _left(snapshot.jobs[name], age) for name in wanted & snapshot.jobs.keys()}

    def of_tiers(self) -> dict[str, float]:
        """Seconds for a new interactive job of the usual size, steps and guidance, by tier."""
        return dict(self._current(set())[0].tiers)

    def _current(self, wanted: set[str]) -> tuple[_Snapshot, float]:
        """A snapshot that is new enough to be shown, and its age; rebuilt if it is old or lacks jobs."""
        wait_until = time.monotonic() + MAX_WAIT_SECONDS
        # Twice: a snapshot that was in progress when a job was created may not have read it.
        for _ in range(2):
            made = self._make_if_needed(wanted)
            if made is None or not made.wait(max(0.0, wait_until - time.monotonic())):
                break
        with self._lock:
            snapshot, now, is_being_made = self._snapshot, self._clock(), self._made is not None
            max_age = max(MAX_AGE_SECONDS, MAX_AGE_IN_COSTS * self._cost_seconds)
        max_age = MAX_AGED_SECONDS if is_being_made else min(max_age, MAX_AGED_SECONDS)
        age = now - snapshot.made_at
        return (snapshot if age <= max_age else _Snapshot(now)), age

    def _make_if_needed(self, wanted: set[str]) -> threading.Event | None:
        """Begin a snapshot; its event is set when it is ready. None if no snapshot is needed or allowed."""
        with self._lock:
            now = self._clock()
            knows_all = self._snapshot.has_failed or wanted <= self._snapshot.known
            if now - self._snapshot.made_at <= KEPT_SECONDS and knows_all:
                return None
            if self._made is not None:
                return self._made
            if not self._may_spend(now):
                return None
            made = self._made = threading.Event()
        try:
            self._begin(lambda: self._make_anew(made))
        except RuntimeError:  # no thread can be started
            log.exception("estimate_failed")
            self._made = None
            return None
        return made

    def _may_spend(self, now: float) -> bool:
        self._saved_seconds += SHARE * (now - self._saved_at)
        self._saved_seconds, self._saved_at = min(self._saved_seconds, MAX_SAVED_SECONDS), now
        return self._saved_seconds > 0

    def _make_anew(self, made: threading.Event) -> None:
        started_at, spent_before = self._clock(), self._processor_clock()
        snapshot = _Snapshot(started_at)
        try:
            snapshot = self._make(started_at)
        finally:
            with self._lock:
                self._cost_seconds = self._processor_clock() - spent_before
                self._saved_seconds -= self._cost_seconds
                self._snapshot, self._made = snapshot, None
            made.set()

    def _make(self, now: float) -> _Snapshot:
        try:
            found = self._read()
            names = frozenset(job.id for job in (*found.running, *found.queued))
            return _Snapshot(now, names, self._estimates(found, names), self._of_usual_jobs(found))
        except StorageError as error:
            log.warning("workload_not_read", error=type(error).__name__)
        except Exception:  # a job is shown without its estimate, never hidden because of it
            log.exception("estimate_failed")
        return _Snapshot(self._clock(), has_failed=True)

    def _of_usual_jobs(self, found: Workload) -> dict[str, float]:
        etas: dict[str, float] = {}
        for job in self._usual_jobs:
            if (job.tier, job.lane) not in found.cut_off:
                behind_all = replace(found, queued=(*found.queued, job))
                etas |= self._estimates(behind_all, {job.id})
        return {name: _left(seconds, 0) for name, seconds in etas.items()}

    def _estimates(self, workload: Workload, job_ids: Iterable[str]) -> dict[str, float]:
        return seconds_until_drawn(workload, set(job_ids), self._row_limits, self._self_test_sides)


def _can_be_estimated(job: Job) -> bool:
    """Whether the job will be drawn in its turn; a quarantined job waits until it can run alone."""
    is_open = job.state in (State.QUEUED, State.RUNNING)
    return is_open and not job.quarantined and job.cancel_requested_at is None


def _left(seconds: float, age: float) -> float:
    return round(max(0.0, seconds - age), 2)


def _usual_jobs(catalogue: "Catalogue") -> list[KnownJob]:
    return [
        KnownJob(
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
    ]
