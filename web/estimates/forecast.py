"""How long jobs and tiers still take: read, played through, and kept a second for all requests of a process.

An estimate costs a query and some arithmetic, and must never be what slows the API down: it is made beside
the requests, none of which waits for it longer than `MAX_WAIT_SECONDS`, it may take a share of one processor
and no more, and what is unknown beyond that is left out. It never fails either.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from storage.errors import StorageError
from storage.job_views import Job
from storage.states import State
from storage.workloads import KnownJob, Workload
from web.estimates.determinism import self_test_sides
from web.estimates.eta import seconds_until_drawn

if TYPE_CHECKING:
    from catalogue.catalogue import Catalogue

log = structlog.get_logger()

KEPT_SECONDS = 1.0
SHARE = 0.1
"""Of a processor, for estimates."""
MAX_SAVED_SECONDS = 0.5
"""So much may be spent at once after a quiet time."""
MAX_AGE_SECONDS = 5.0
"""An older outlook says nothing, unless it was costly or a new one is being made."""
MAX_AGE_IN_COSTS = 20
"""So old may an outlook get, in what it cost: twice as long as until the next may be made after it."""
MAX_AGED_SECONDS = 60.0
"""So old may it get at most, and while a new one is being made, so that who asks rarely is answered too."""
MAX_WAIT_SECONDS = 0.03
"""Where an outlook takes longer, the last one is taken: an answer is never late for its estimate."""

Begin = Callable[[Callable[[], None]], None]
"""Runs what it is given, now or beside the caller."""


def on_a_thread(work: Callable[[], None]) -> None:
    """Run `work` beside the caller."""
    threading.Thread(target=work, name="forecast", daemon=True).start()


@dataclass(frozen=True)
class _Snapshot:
    """What was foreseen at one moment."""

    made_at: float
    known: frozenset[str] = frozenset()  # jobs that were looked at, with an estimate or without
    jobs: dict[str, float] = field(default_factory=dict)
    tiers: dict[str, float] = field(default_factory=dict)
    has_failed: bool = False  # then it is kept for everybody, whatever they want to know


class Forecast:
    """Estimates for the models of `catalogue`; `read` gives the workload and may raise `StorageError`.

    `processor_clock` tells what the thread that calls it has had of a processor. That is what is limited;
    waiting for Postgres takes nothing of it.
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
        self._lock = threading.Lock()  # held for a moment only
        self._made: threading.Event | None = None  # of the outlook that is being made
        self._snapshot = _Snapshot(made_at=clock() - 2 * KEPT_SECONDS)
        self._cost_seconds = 0.0  # of the last outlook
        self._saved_seconds = MAX_SAVED_SECONDS
        self._saved_at = clock()

    def of_jobs(self, jobs: Iterable[Job]) -> dict[str, float]:
        """Seconds until the images of each of these jobs are drawn, by id, where that can be told."""
        wanted = {job.id for job in jobs if _is_foreseeable(job)}
        if not wanted:
            return {}
        outlook, age = self._look(wanted)
        return {name: _left(outlook.jobs[name], age) for name in wanted & outlook.jobs.keys()}

    def of_tiers(self) -> dict[str, float]:
        """Seconds for an interactive job of the usual size, steps and guidance that came now, by tier."""
        return dict(self._look(set())[0].tiers)

    def _look(self, wanted: set[str]) -> tuple[_Snapshot, float]:
        """The outlook, made anew if it is old or does not know all that is wanted, and its age."""
        wait_until = time.monotonic() + MAX_WAIT_SECONDS
        # Twice: what was being made when they were asked for may not know the youngest jobs.
        for _ in range(2):
            made = self._order(wanted)
            if made is None or not made.wait(max(0.0, wait_until - time.monotonic())):
                break
        with self._lock:
            outlook, now, is_being_made = self._snapshot, self._clock(), self._made is not None
            max_age = max(MAX_AGE_SECONDS, MAX_AGE_IN_COSTS * self._cost_seconds)
        max_age = MAX_AGED_SECONDS if is_being_made else min(max_age, MAX_AGED_SECONDS)
        age = now - outlook.made_at
        return (outlook if age <= max_age else _Snapshot(now)), age

    def _order(self, wanted: set[str]) -> threading.Event | None:
        """See to it that a better outlook is made; set once it is. None where none is needed or may be."""
        with self._lock:
            now = self._clock()
            says_enough = self._snapshot.has_failed or wanted <= self._snapshot.known
            if now - self._snapshot.made_at <= KEPT_SECONDS and says_enough:
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

    def _make_anew(self, made: threading.Event) -> None:
        started_at, spent_before = self._clock(), self._processor_clock()
        outlook = _Snapshot(started_at)
        try:
            outlook = self._make(started_at)
        finally:
            with self._lock:
                self._cost_seconds = self._processor_clock() - spent_before
                self._saved_seconds -= self._cost_seconds
                self._snapshot, self._made = outlook, None
            made.set()

    def _may_spend(self, now: float) -> bool:
        self._saved_seconds += SHARE * (now - self._saved_at)
        self._saved_seconds, self._saved_at = min(self._saved_seconds, MAX_SAVED_SECONDS), now
        return self._saved_seconds > 0

    def _make(self, now: float) -> _Snapshot:
        try:
            found = self._read()
            names = [job.id for job in (*found.running, *found.queued)]
            jobs = self._until_drawn(found, names)
            return _Snapshot(now, frozenset(names), jobs, self._of_usual_jobs(found))
        except StorageError as error:
            log.warning("workload_not_read", error=type(error).__name__)
        except Exception:  # a job is shown without its estimate, never hidden because of it
            log.exception("estimate_failed")
        return _Snapshot(self._clock(), has_failed=True)

    def _until_drawn(self, workload: Workload, job_ids: Sequence[str]) -> dict[str, float]:
        return seconds_until_drawn(workload, job_ids, self._row_limits, self._self_test_sides)

    def _of_usual_jobs(self, found: Workload) -> dict[str, float]:
        etas: dict[str, float] = {}
        for job in self._usual_jobs:
            if (job.tier, job.lane) not in found.cut_off:
                behind_all = replace(found, queued=(*found.queued, job))
                etas |= self._until_drawn(behind_all, [job.id])
        return {name: _left(seconds, 0) for name, seconds in etas.items()}


def _is_foreseeable(job: Job) -> bool:
    """A suspect waits until nothing runs beside it, and what is to be canceled will not be drawn."""
    is_open = job.state in (State.QUEUED, State.RUNNING)
    return is_open and not job.quarantined and job.cancel_requested_at is None


def _left(seconds: float, age: float) -> float:
    return round(max(0.0, seconds - age), 2)


def _usual_jobs(catalogue: "Catalogue") -> Sequence[KnownJob]:
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
