"""Prometheus metrics of one web process, on a loopback port of their own. Labels are few, never an id."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import partial
from typing import Any, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from storage.errors import StorageError
from web.front.application import Front
from web.front.connection import Connections
from web.front.limits import Limits
from web.front.server import Server
from web.front.threads import Threads as FrontThreads
from web.front.wsgi import WsgiApplication

log = structlog.get_logger()

LOOPBACK = "127.0.0.1"
MAX_METRICS_CONNECTIONS = 16
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Threads(Protocol):
    """What runs the requests."""

    @property
    def num_running(self) -> int:
        """Requests that hold a thread."""

    @property
    def num_queued(self) -> int:
        """Requests that wait for one."""


class Bells(Protocol):
    """What counts the bells: a dispatcher."""

    @property
    def num_rung(self) -> int:
        """Bells that the broker took."""

    @property
    def num_failed(self) -> int:
        """Bells that it did not take."""


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

    def watch_front(
        self, connections: Sized, threads: Threads, num_cut: Callable[[], Mapping[str, int]]
    ) -> None:
        """Export what the front holds now, and how many connections it cut, by the phase they were in."""
        for name, documentation, read in (
            ("calotype_connections", "Connections of clients.", lambda: len(connections)),
            ("calotype_running_requests", "Requests that hold a thread.", lambda: threads.num_running),
            ("calotype_queued_requests", "Requests that wait for a thread.", lambda: threads.num_queued),
        ):
            Gauge(name, documentation, registry=self.registry).set_function(read)
        self.registry.register(_CutCollector(num_cut))

    def watch_queues(self, depth: Callable[[], Mapping[tuple[str, str], int]], tiers: list[str]) -> None:
        """Export how many jobs are queued; read from Postgres when Prometheus asks."""

        def read() -> Iterator[tuple[list[str], float]]:
            found = depth()
            for tier in tiers:
                for lane in ("interactive", "bulk"):
                    yield [tier, lane], found.get((tier, lane), 0)

        self.registry.register(
            _RowCollector("calotype_queue_jobs", "Jobs that wait.", ["tier", "lane"], read)
        )

    def watch_workers(self, live: Callable[[], Mapping[str, int]], tiers: list[str]) -> None:
        """Export how many live workers serve each tier; read from Postgres when Prometheus asks."""

        def read() -> Iterator[tuple[list[str], float]]:
            found = live()
            for tier in tiers:
                yield [tier], found.get(tier, 0)

        self.registry.register(
            _RowCollector("calotype_tier_live_workers", "Live workers that serve it.", ["tier"], read)
        )

    def watch_webhooks(self, num_pending: Callable[[], float], seconds_late: Callable[[], float]) -> None:
        """Export how many webhooks wait and how late they are; read from Postgres when Prometheus asks."""
        for name, documentation, read in (
            ("calotype_webhooks_pending", "Webhook deliveries that have not ended.", num_pending),
            ("calotype_webhooks_late_seconds", "Since when webhooks are due and not sent.", seconds_late),
        ):
            self.registry.register(_RowCollector(name, documentation, [], partial(_alone, read)))

    def watch_receivers(self, count: Callable[[str], float]) -> None:
        """Export how many webhook receivers fail and how many are paused; read when Prometheus asks."""

        def read() -> Iterator[tuple[list[str], float]]:
            for state in ("failing", "paused"):
                yield [state], count(state)

        self.registry.register(
            _RowCollector("calotype_webhook_receivers", "Webhook receivers that fail.", ["state"], read)
        )

    def serve(self, port: int) -> None:
        """Answer `/metrics` on loopback; a port that is taken is logged, never fatal.

        By the front too, on a loop of its own: any program of this machine may connect, so connections are
        few and have deadlines, and one answer is made at a time, since it reads Postgres.
        """
        try:
            listener = socket.create_server((LOOPBACK, port))
        except OSError as error:
            log.warning("metrics_not_served", port=port, error=str(error))
            return
        limits = Limits(num_threads=1, max_queued=4, max_connections=MAX_METRICS_CONNECTIONS)
        front = Front(
            _with_head(make_wsgi_app(self.registry)),
            limits,
            FrontThreads(limits),
            lambda *_: limits.max_body_bytes,
        )
        connections = Connections(limits.max_connections)
        server = Server(front, LOOPBACK, port, limits=limits, connections=connections)
        serving = partial(server.run, sockets=[listener])
        threading.Thread(target=serving, name="metrics", daemon=True).start()


def _with_head(app: WsgiApplication) -> WsgiApplication:
    """The application with a `HEAD` wherever it has a `GET`; the front sends no body after it."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        method = environ["REQUEST_METHOD"]
        return app({**environ, "REQUEST_METHOD": "GET" if method == "HEAD" else method}, start_response)

    return answer


def _alone(read: Callable[[], float]) -> list[tuple[list[str], float]]:
    return [([], read())]


class _BellCollector(Collector):
    def __init__(self, bells: Bells) -> None:
        self._bells = bells

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("calotype_bells_rung", "Bells published.", value=self._bells.num_rung)
        yield CounterMetricFamily(
            "calotype_bells_failed", "Bells that stayed silent.", value=self._bells.num_failed
        )


class _CutCollector(Collector):
    def __init__(self, num_cut: Callable[[], Mapping[str, int]]) -> None:
        self._num_cut = num_cut

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "calotype_connections_cut", "Connections ended since their clients were slow.", labels=["phase"]
        )
        for phase, count in self._num_cut().items():
            family.add_metric([phase], count)
        yield family


class _RowCollector(Collector):
    """A gauge whose values are rows of Postgres: absent, never wrong, while it does not answer."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: list[str],
        read: Callable[[], Iterable[tuple[list[str], float]]],
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._read = read

    def describe(self) -> Iterator[Metric]:
        yield self._family()  # without asking Postgres, which may be down when we start

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        try:
            for labels, value in self._read():
                family.add_metric(labels, value)
        except StorageError as error:
            log.warning("metric_not_read", metric=self._name, error=type(error).__name__)
            return
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._name, self._documentation, labels=self._labels)
