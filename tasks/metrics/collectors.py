"""Metrics whose values are asked for when Prometheus reads them: rows of Postgres, messages of a dispatcher.

Used by the API's process and the sweeper's. Of a row's metric it knows the shape, not what is read.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import structlog
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from storage.errors import StorageError

log = structlog.get_logger()


class Dispatches(Protocol):
    """What counts the bells: a dispatcher."""

    @property
    def num_dispatched_now(self) -> int:
        """Dispatches that the broker took."""

    @property
    def num_failed(self) -> int:
        """Dispatches that it did not take."""


class DispatchCollector(Collector):
    """How many bells were rung, and how many could not be."""

    def __init__(self, dispatches: Dispatches) -> None:
        self._dispatches = dispatches

    def collect(self) -> Iterator[Metric]:
        """Both counters."""
        yield CounterMetricFamily(
            "calotype_dispatches", "Dispatches published.", value=self._dispatches.num_dispatched_now
        )
        yield CounterMetricFamily(
            "calotype_dispatches_failed", "Dispatches that stayed silent.", value=self._dispatches.num_failed
        )


class RowCollector(Collector):
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
        """Without asking Postgres, which may be down when we start."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        """One value for each row."""
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
