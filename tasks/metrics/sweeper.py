"""What a sweeper tells Prometheus: what it healed, and for how long the oldest jobs have waited."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, ProcessCollector

from storage.job_views import BadEnd
from storage.states import State
from tasks.metrics.collectors import DispatchCollector, Dispatches, RowCollector
from tasks.queues import LANES


class SweeperMetrics:
    """The registry of one sweeper, and its counters."""

    def __init__(self, tiers: Iterable[str] = ()) -> None:
        self._tiers = list(tiers)
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.sweeps = Counter("calotype_sweeps", "Turns of the sweeper.", registry=registry)
        self.failures = Counter(
            "calotype_sweep_failures", "Parts of turns that failed.", ["part"], registry=registry
        )
        self.reaped = Counter(
            "calotype_jobs_reaped",
            "Jobs taken back from a worker that died or went silent, by their state then.",
            ["state"],
            registry=registry,
        )
        self.failed = Counter(
            "calotype_jobs_failed",
            "Jobs that failed, by the code of their error.",
            ["tier", "code"],
            registry=registry,
        )
        self.expired = Counter(
            "calotype_jobs_expired", "Jobs whose deadline passed in the queue.", registry=registry
        )
        self.redispatched = Counter(
            "calotype_redispatches",
            "Messages sent again since they were lost.",
            ["tier", "lane"],
            registry=registry,
        )
        self.orphans_deleted = Counter(
            "calotype_orphans_deleted", "Objects deleted that no row pointed to.", registry=registry
        )
        self.files_deleted = Counter(
            "calotype_files_deleted", "Files removed: unused, or deleted by their owner.", registry=registry
        )

        # `increase()` misses the first event of a counter that was not there before it.
        for state in (State.QUEUED, State.FAILED, State.CANCELED):
            self.reaped.labels(state.value)
        for tier in self._tiers:
            self.failed.labels(tier, "worker_lost")
            for lane in LANES:
                self.redispatched.labels(tier, lane)

    def begin_failures(self, parts: Iterable[str]) -> None:
        """Count the failures of these parts of a turn from zero."""
        for part in parts:
            self.failures.labels(part)

    def ended_badly(self, end: BadEnd) -> None:
        """Count a job that failed, was taken back from its worker, or both."""
        if end.transition == "reap":
            self.reaped.labels(end.state).inc()
        if end.error_code is not None:
            self.failed.labels(end.tier, end.error_code).inc()

    def watch_dispatches(self, dispatches: Dispatches) -> None:
        """Export how many messages were sent and how many could not be."""
        self.registry.register(DispatchCollector(dispatches))

    def watch_queues(self, oldest_seconds: Callable[[], Mapping[tuple[str, str], float]]) -> None:
        """Export the age of the oldest queued job; read from Postgres when Prometheus asks."""

        def read() -> Iterator[tuple[list[str], float]]:
            found = oldest_seconds()
            for tier in self._tiers:
                for lane in LANES:
                    yield [tier, lane], found.get((tier, lane), 0.0)

        self.registry.register(
            RowCollector(
                "calotype_queue_age_seconds", "Age of the oldest job that waits.", ["tier", "lane"], read
            )
        )
