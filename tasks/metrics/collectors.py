"""Metrics that are read when Prometheus scrapes them: rows of Postgres, and counters of a dispatcher.

The API and the sweeper use them. The caller provides the query of a row metric.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

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


class RowCollector(Collector):
    """A gauge with a value per row of Postgres; it is absent while Postgres does not answer."""

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
        """Yield the gauge without values, since Postgres may be down at the start."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        """Yield one value per row."""
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
