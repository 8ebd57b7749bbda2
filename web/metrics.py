"""Prometheus metrics of one web process; `tasks.metrics.server` serves them. No label holds an id."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from storage.open_work import OpenState
from tasks.metrics.collectors import DispatchCollector, Dispatches, RowCollector, RowCollectors

ROWS_SECONDS = 2.0
"""The time for what is read from Postgres; less than `web.front.processes` waits for a process."""
_WORK: Mapping[OpenState, str] = {
    "queued": "Seconds for which the queued jobs would keep one device busy.",
    "running": "Seconds for which what is left of the running jobs keeps one device busy.",
}
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Threads(Protocol):
    """The threads that run the requests."""

    @property
    def num_running(self) -> int:
        """The number of requests that hold a thread."""

    @property
    def num_queued(self) -> int:
        """The number of requests that wait for a thread."""


class Metrics:
    """The registry of one application, so that two applications in one process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._rows = RowCollectors(max_seconds=ROWS_SECONDS)
        self.registry.register(self._rows)
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "calotype_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "calotype_request_seconds",
            "Time to the response, including waiting for a job.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.jobs_accepted = Counter(
            "calotype_jobs_accepted", "Jobs submitted singly.", ["tier", "lane"], registry=self.registry
        )
        self.batch_rows_accepted = Counter(
            "calotype_batch_rows_accepted", "Jobs submitted in CSV files.", registry=self.registry
        )

    def watch_dispatches(self, dispatches: Dispatches) -> None:
        """Export how many messages were dispatched and how many dispatches failed."""
        self.registry.register(DispatchCollector(dispatches))

    def watch_waiters(self, count: Callable[[], float]) -> None:
        """Export how many requests wait for a job to end."""
        gauge = Gauge("calotype_waiters_threads", "Threads that wait for a job.", registry=self.registry)
        gauge.set_function(count)

    def watch_front(
        self, connections: Sized, threads: Threads, num_cut: Callable[[], Mapping[str, int]]
    ) -> None:
        """Export what the front holds, and how many connections it closed, by their phase."""
        for name, documentation, read in (
            ("calotype_connections", "Connections of clients.", lambda: len(connections)),
            (
                "calotype_running_requests",
                "The number of requests that hold a thread.",
                lambda: threads.num_running,
            ),
            ("calotype_queued_requests", "Requests that wait for a thread.", lambda: threads.num_queued),
        ):
            Gauge(name, documentation, registry=self.registry).set_function(read)
        self.registry.register(_CutCollector(num_cut))

    def watch_queues(self, depth: Callable[[], Mapping[tuple[str, str], int]], tiers: list[str]) -> None:
        """Export how many jobs are queued; read from Postgres at each scrape."""

        def read() -> Iterator[tuple[list[str], float]]:
            found = depth()
            for tier in tiers:
                for lane in ("interactive", "bulk"):
                    yield [tier, lane], found.get((tier, lane), 0)

        self._watch_rows("calotype_queue_jobs", "Jobs that wait.", ["tier", "lane"], read)

    def watch_work(self, seconds: Callable[[], Iterable[tuple[OpenState, tuple[str, str], float]]]) -> None:
        """Export the device seconds of the open jobs, which are read together at each scrape."""

        def read() -> Iterator[tuple[str, list[str], float]]:
            for state, (tier, lane), value in seconds():
                yield f"calotype_{state}_device_seconds", [tier, lane], value

        gauges = {f"calotype_{state}_device_seconds": said for state, said in _WORK.items()}
        self._rows.add(RowCollector(gauges, ["tier", "lane"], read))

    def watch_workers(self, live: Callable[[], Mapping[str, int]], tiers: list[str]) -> None:
        """Export how many live workers serve each tier; read from Postgres at each scrape."""

        def read() -> Iterator[tuple[list[str], float]]:
            found = live()
            for tier in tiers:
                yield [tier], found.get(tier, 0)

        self._watch_rows("calotype_tier_live_workers", "Live workers of the tier.", ["tier"], read)

    def watch_pauses(self, paused: Callable[[], Collection[str]], tiers: list[str]) -> None:
        """Export which tiers are paused; read from Postgres at each scrape."""

        def read() -> Iterator[tuple[list[str], float]]:
            found = paused()
            for tier in tiers:
                yield [tier], float(tier in found)

        self._watch_rows("calotype_tier_paused", "Whether an operator has paused the tier.", ["tier"], read)

    def watch_webhooks(self, num_pending: Callable[[], float], seconds_late: Callable[[], float]) -> None:
        """Export how many webhooks wait and how late they are; read from Postgres at each scrape."""
        for name, documentation, read in (
            ("calotype_webhooks_pending", "Webhook deliveries that have not ended.", num_pending),
            ("calotype_webhooks_late_seconds", "How long due webhooks have not been sent.", seconds_late),
        ):
            self._watch_rows(name, documentation, [], partial(_alone, read))

    def watch_receivers(self, count: Callable[[str], float]) -> None:
        """Export how many webhook receivers fail and how many are paused; read at each scrape."""

        def read() -> Iterator[tuple[list[str], float]]:
            for state in ("failing", "paused"):
                yield [state], count(state)

        self._watch_rows("calotype_webhook_receivers", "Webhook receivers that fail.", ["state"], read)

    def leave_rows_out(self) -> None:
        """Export no metric that is read from Postgres: another process of this API does."""
        self.registry.unregister(self._rows)

    def _watch_rows(
        self,
        name: str,
        documentation: str,
        labels: list[str],
        read: Callable[[], Iterable[tuple[list[str], float]]],
    ) -> None:
        self._rows.add(RowCollector.of_one(name, documentation, labels, read))


def _alone(read: Callable[[], float]) -> list[tuple[list[str], float]]:
    return [([], read())]


class _CutCollector(Collector):
    def __init__(self, num_cut: Callable[[], Mapping[str, int]]) -> None:
        self._num_cut = num_cut

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "calotype_connections_cut", "Connections closed because of slow clients.", labels=["phase"]
        )
        for phase, count in self._num_cut().items():
            family.add_metric([phase], count)
        yield family
