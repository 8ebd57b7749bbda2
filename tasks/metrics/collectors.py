"""Metrics that are read when Prometheus scrapes them: rows of Postgres, and counters of a dispatcher.

The API and the sweeper use them. The caller provides the query of a row metric.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, Self

import structlog
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from storage.errors import StorageError

log = structlog.get_logger()


class Dispatches(Protocol):
    """The counters of a dispatcher."""

    @property
    def num_dispatched(self) -> int:
        """The number of dispatches that the broker accepted."""

    @property
    def num_failed(self) -> int:
        """The number of dispatches that it did not accept."""


class DispatchCollector(Collector):
    """Exports how many dispatches were published, and how many failed."""

    def __init__(self, dispatches: Dispatches) -> None:
        self._dispatches = dispatches

    def collect(self) -> Iterator[Metric]:
        """Yield both counters."""
        yield CounterMetricFamily(
            "calotype_dispatches", "Dispatches published.", value=self._dispatches.num_dispatched
        )
        yield CounterMetricFamily(
            "calotype_dispatches_failed",
            "Dispatches that could not be published.",
            value=self._dispatches.num_failed,
        )


class RowCollectors(Collector):
    """Several row metrics, read on a thread; those that are not read within `max_seconds` are absent.

    The other metrics of the registry are then not late while Postgres is slow.
    """

    def __init__(self, *, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._collectors: list[RowCollector] = []
        self._lock = threading.Lock()
        self._reading: _Reading | None = None

    def add(self, collector: "RowCollector") -> None:
        """Export this metric too."""
        self._collectors.append(collector)

    def describe(self) -> Iterator[Metric]:
        """Yield the gauges without values."""
        for collector in self._collectors:
            yield from collector.describe()

    def collect(self) -> Iterator[Metric]:
        """Yield what is read in time; nothing while the reading of an earlier scrape lasts."""
        with self._lock:
            if self._reading is None or self._reading.has_ended.is_set():
                self._reading = _Reading(self._collectors)
            reading = self._reading
        if reading.is_late:
            return
        reading.is_late = not reading.has_ended.wait(self._max_seconds)
        if reading.is_late:
            log.warning("row_metrics_late", max_seconds=self._max_seconds)
        yield from list(reading.families)


class _Reading:
    """The families that a thread has read so far."""

    def __init__(self, collectors: Iterable["RowCollector"]) -> None:
        self.families: list[Metric] = []
        self.has_ended = threading.Event()
        self.is_late = False
        threading.Thread(target=self._read, args=(list(collectors),), name="row-metrics", daemon=True).start()

    def _read(self, collectors: Iterable["RowCollector"]) -> None:
        try:
            for collector in collectors:
                self.families.extend(collector.collect())
        except Exception:
            log.exception("row_metrics_not_read")
        finally:
            self.has_ended.set()


class RowCollector(Collector):
    """Gauges with a value per row of Postgres, read together; absent while Postgres does not answer.

    `gauges` are their names and descriptions; what is read names the gauge, and has its labels and its value.
    """

    def __init__(
        self,
        gauges: Mapping[str, str],
        labels: list[str],
        read: Callable[[], Iterable[tuple[str, list[str], float]]],
    ) -> None:
        self._gauges = gauges
        self._labels = labels
        self._read = read

    @classmethod
    def of_one(
        cls,
        name: str,
        documentation: str,
        labels: list[str],
        read: Callable[[], Iterable[tuple[list[str], float]]],
    ) -> Self:
        """The collector of one gauge, whose name is not read."""
        return cls({name: documentation}, labels, lambda: ((name, *row) for row in read()))

    def describe(self) -> Iterator[Metric]:
        """Yield the gauges without values, since Postgres may be down at the start."""
        yield from self._families().values()

    def collect(self) -> Iterator[Metric]:
        """Yield one value per row."""
        families = self._families()
        try:
            for name, labels, value in self._read():
                families[name].add_metric(labels, value)
        except StorageError as error:
            log.warning("metric_not_read", metric=", ".join(families), error=type(error).__name__)
            return
        yield from families.values()

    def _families(self) -> dict[str, GaugeMetricFamily]:
        return {
            name: GaugeMetricFamily(name, said, labels=self._labels) for name, said in self._gauges.items()
        }
