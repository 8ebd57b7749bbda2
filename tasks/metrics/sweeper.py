"""The metrics of a sweeper: what it repaired, and the age of the oldest queued jobs."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, ProcessCollector

from catalogue.lanes import LANES
from catalogue.states import State
from storage.job_views import BadEnd
from tasks.metrics.collectors import DispatchCollector, Dispatches, RowCollector
from tasks.queues import DISPATCHED_LANE


class SweeperMetrics:
    """The registry and the counters of one sweeper."""

    def __init__(self, tiers: Iterable[str] = ()) -> None:
        self._tiers = list(tiers)
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.sweeps = Counter("calotype_sweeps", "Turns of the sweeper.", registry=registry)
        self.failures = Counter(
            "calotype_sweep_failures", "Failed parts of turns.", ["part"], registry=registry
        )
        self.reaped = Counter(
            "calotype_jobs_reaped",
            "Jobs reaped from a worker that died or was cut off, by their new state.",
            ["state"],
            registry=registry,
        )
        self.failed = Counter(
            "calotype_jobs_failed",
            "Jobs that failed, by error code.",
            ["tier", "code"],
            registry=registry,
        )
        self.expired = Counter(
            "calotype_jobs_expired", "Jobs whose deadline passed in the queue.", registry=registry
        )
        self.redispatched = Counter(
            "calotype_redispatches",
            "Jobs dispatched again because their message was lost.",
            ["tier", "lane"],
            registry=registry,
        )
        self.orphans_deleted = Counter(
            "calotype_orphans_deleted", "Deleted objects that no row pointed to.", registry=registry
        )
        self.files_deleted = Counter(
            "calotype_files_deleted",
            "Removed files: expired unused, or deleted by their owner.",
            registry=registry,
        )
        self.jobs_erased = Counter(
            "calotype_jobs_erased", "Jobs erased because of their age.", registry=registry
        )

        # `increase()` misses the first event of a counter that did not exist before it.
        for state in (State.QUEUED, State.FAILED, State.CANCELED):
            self.reaped.labels(state.value)
        for tier in self._tiers:
            self.failed.labels(tier, "worker_lost")
            self.redispatched.labels(tier, DISPATCHED_LANE)

    def begin_failures(self, parts: Iterable[str]) -> None:
        """Start the failure counters of these parts of a turn at zero."""
        for part in parts:
            self.failures.labels(part)

    def ended_badly(self, end: BadEnd) -> None:
        """Count a job that failed, was reaped, or both."""
        if end.transition == "reap":
            self.reaped.labels(end.state).inc()
        if end.error_code is not None:
            self.failed.labels(end.tier, end.error_code).inc()

    def watch_dispatches(self, dispatches: Dispatches) -> None:
        """Export how many dispatches were published and how many failed."""
        self.registry.register(DispatchCollector(dispatches))

    def watch_queues(self, oldest_seconds: Callable[[], Mapping[tuple[str, str], float]]) -> None:
        """Export the age of the oldest queued job, read from Postgres at each scrape."""

        def read() -> Iterator[tuple[list[str], float]]:
            found = oldest_seconds()
            for tier in self._tiers:
                for lane in LANES:
                    yield [tier, lane], found.get((tier, lane), 0.0)

        self.registry.register(
            RowCollector.of_one(
                "calotype_queue_age_seconds", "Age of the oldest queued job.", ["tier", "lane"], read
            )
        )
