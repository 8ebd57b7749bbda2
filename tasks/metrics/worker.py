"""The metrics of a worker: its jobs, its step batches and its memory.

Labels are few, and never an id, an account or text of a prompt. The seconds of a job are those in its row
(`tasks.generate.timings_of`), so nothing is measured twice.
"""

from collections.abc import Callable, Mapping, Sequence
from resource import RUSAGE_SELF, getrusage

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from catalogue.lanes import LANES
from catalogue.states import State
from engine.errors import EngineError
from storage.errors import StorageError
from storage.job_views import Outcome
from storage.jobs import Claim
from tasks.job_observers import JobObserver
from tasks.stages import stage_seconds

STAGE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
STEP_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
ROW_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


class WorkerMetrics(JobObserver):
    """The registry of one worker; the counters of its tiers start at 0 rather than absent."""

    def __init__(self, tiers: Sequence[str] = ()) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        peak = Gauge(
            "calotype_process_peak_memory_bytes",
            "The most main memory that the process has had.",
            registry=registry,
        )
        peak.set_function(lambda: getrusage(RUSAGE_SELF).ru_maxrss * 1024)  # in KiB on Linux
        self._settled = Counter(
            "calotype_jobs_settled",
            "Ended claims of jobs, by the job's new state; `queued`: it went back to its queue.",
            ["tier", "lane", "state"],
            registry=registry,
        )
        self._failures = Counter(
            "calotype_job_failures",
            "Claims of jobs that ended with an error, by code, including those that are retried.",
            ["tier", "code"],
            registry=registry,
        )
        self._images = Counter("calotype_images", "Images stored.", ["tier", "lane"], registry=registry)
        self._device_seconds = Counter(
            "calotype_device_seconds",
            "Seconds on the device of succeeded jobs, shared by rows.",
            ["tier"],
            registry=registry,
        )
        self._stages = Histogram(
            "calotype_job_stage_seconds",
            "Duration of each stage of succeeded jobs, for the slowest image of each job.",
            ["tier", "lane", "stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._rows = Histogram(
            "calotype_step_batch_rows",
            "Rows of each step batch; a generation with guidance has two.",
            ["model"],
            buckets=ROW_BUCKETS,
            registry=registry,
        )
        self._step_seconds = Histogram(
            "calotype_step_seconds",
            "Duration of each step batch.",
            ["model"],
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self._reasons = Counter(
            "calotype_step_batches",
            "Step batches, by the reason why they were not full.",
            ["model", "reason"],
            registry=registry,
        )

        for tier in tiers:
            self._device_seconds.labels(tier)
            for code in ("internal_error", *_codes_below(EngineError), *_codes_below(StorageError)):
                self._failures.labels(tier, code)
            for lane in LANES:
                self._images.labels(tier, lane)
                for state in (State.SUCCEEDED, State.FAILED, State.CANCELED, State.QUEUED):
                    self._settled.labels(tier, lane, state.value)

    def watch_slots(self, limits: Mapping[str, int], taken: Callable[[str], int]) -> None:
        """Export how many slots each lane has, and how many are in use."""
        slots = Gauge(
            "calotype_slots", "Jobs that the worker may hold at once.", ["lane"], registry=self.registry
        )
        held = Gauge(
            "calotype_held_jobs", "Jobs that the worker holds now.", ["lane"], registry=self.registry
        )
        for lane, limit in limits.items():
            slots.labels(lane).set(limit)
            held.labels(lane).set_function(lambda lane=lane: taken(lane))  # type: ignore[misc]

    def watch_generations(self, count: Callable[[], Mapping[str, int]]) -> None:
        """Export how many images the engine holds, by stage."""
        gauge = Gauge(
            "calotype_generations",
            "Images that the engine holds, by stage.",
            ["stage"],
            registry=self.registry,
        )
        for stage in count():
            gauge.labels(stage).set_function(lambda stage=stage: count()[stage])  # type: ignore[misc]

    def watch_device(
        self, device: str, memory_bytes: Callable[[], int | None], peak_bytes: Callable[[], int | None]
    ) -> None:
        """Export the reserved device memory, unless the device uses the memory of the process."""
        for name, documentation, read in (
            ("calotype_device_memory_bytes", "Device memory that this process has reserved.", memory_bytes),
            ("calotype_device_peak_memory_bytes", "The most device memory that it has reserved.", peak_bytes),
        ):
            if read() is not None:
                gauge = Gauge(name, documentation, ["device"], registry=self.registry)
                gauge.labels(device).set_function(lambda read=read: read() or 0)  # type: ignore[misc]

    def stepped(self, model: str, num_rows: int, seconds: float, reason: str | None) -> None:
        """Count a step batch; `reason` is why it was not full, `None` if it was."""
        self._rows.labels(model).observe(num_rows)
        self._step_seconds.labels(model).observe(seconds)
        self._reasons.labels(model, reason or "full").inc()

    def claimed(self, claim: Claim) -> None:
        """Record the time in the queue; in later attempts it would include the earlier ones."""
        job = claim.job
        if claim.lease.attempt == 1 and job.started_at is not None:
            queued_seconds = (job.started_at - job.created_at).total_seconds()
            self._stages.labels(job.tier, job.lane, "queued").observe(queued_seconds)

    def settled(self, claim: Claim, outcome: Outcome) -> None:
        """Count the outcome; for a success, record the duration of its stages too."""
        job = claim.job
        self._settled.labels(job.tier, job.lane, outcome.state.value).inc()
        if outcome.state is State.SUCCEEDED:
            self._images.labels(job.tier, job.lane).inc(outcome.num_images)
            self._device_seconds.labels(job.tier).inc(outcome.timings["device_seconds"])
            for stage, seconds in stage_seconds(outcome.timings).items():
                self._stages.labels(job.tier, job.lane, stage).observe(seconds)
        elif outcome.state is not State.CANCELED:
            self._failures.labels(job.tier, outcome.error_code).inc()


def _codes_below(kind: type[EngineError] | type[StorageError]) -> set[str]:
    """The codes of an error class and its subclasses."""
    return {kind.code}.union(*(_codes_below(one) for one in kind.__subclasses__()))
