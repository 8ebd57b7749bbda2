"""Prometheus metrics of one web process, on a loopback port of their own. Labels are few, never an id."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from storage.errors import StorageError

log = structlog.get_logger()

LOOPBACK = "127.0.0.1"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Bells(Protocol):
    """What counts the bells: a dispatcher."""

    num_rung: int
    num_failed: int


class Metrics:
    """The registry of one application, so that two in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "calotype_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "calotype_request_seconds",
            "Time to an answer; waiting for a job included.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.jobs_accepted = Counter(
            "calotype_jobs_accepted", "Jobs made one at a time.", ["tier", "lane"], registry=self.registry
        )
        self.batch_rows_accepted = Counter(
            "calotype_batch_rows_accepted", "Jobs made by CSV.", registry=self.registry
        )

    def watch_bells(self, bells: Bells) -> None:
        """Export how many bells were rung and how many could not be."""
        self.registry.register(_BellCollector(bells))

    def watch_waiters(self, count: Callable[[], float]) -> None:
        """Export how many threads wait for a job now."""
        gauge = Gauge("calotype_waiters_threads", "Threads that wait for a job.", registry=self.registry)
        gauge.set_function(count)

    def watch_queues(self, depth: Callable[[], Mapping[tuple[str, str], int]], tiers: list[str]) -> None:
        """Export how many jobs are queued; read from Postgres when Prometheus asks."""
        self.registry.register(_QueueCollector(depth, tiers))

    def serve(self, port: int) -> None:
        """Answer `/metrics` on loopback; a port that is taken is logged, never fatal."""
        try:
            start_http_server(port, addr=LOOPBACK, registry=self.registry)
        except OSError as error:
            log.warning("metrics_not_served", port=port, error=str(error))
            return
        logging.getLogger("wsgiref").setLevel(logging.WARNING)


class _BellCollector(Collector):
    def __init__(self, bells: Bells) -> None:
        self._bells = bells

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("calotype_bells_rung", "Bells published.", value=self._bells.num_rung)
        yield CounterMetricFamily(
            "calotype_bells_failed", "Bells that stayed silent.", value=self._bells.num_failed
        )


class _QueueCollector(Collector):
    def __init__(self, depth: Callable[[], Mapping[tuple[str, str], int]], tiers: list[str]) -> None:
        self._depth = depth
        self._tiers = tiers

    def describe(self) -> Iterator[Metric]:
        yield self._family()  # without asking Postgres, which may be down when we start

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        try:
            found = self._depth()
        except StorageError as error:
            log.warning("queue_depth_not_read", error=type(error).__name__)
            return
        for tier in self._tiers:
            for lane in ("interactive", "bulk"):
                family.add_metric([tier, lane], found.get((tier, lane), 0))
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily("calotype_queue_jobs", "Jobs that wait.", labels=["tier", "lane"])
