"""The metrics of an API in several processes, on one port: those of each, with its index as a label.

A child writes its own as one line of JSON, and the parent reads them. It knows no metric.
"""

import json
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

LABEL = "process"


def written(registry: CollectorRegistry) -> bytes:
    """All metrics of this registry, in one line."""
    families = [
        [one.name, one.documentation, one.type, [[s.name, s.labels, s.value] for s in one.samples]]
        for one in registry.collect()
    ]
    return json.dumps(families).encode()


class ProcessCollector(Collector):
    """Exports what the children wrote, each family once; `read` returns their indexes and lines."""

    def __init__(self, read: Callable[[], Iterable[tuple[int, bytes]]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the families of all children."""
        families: dict[str, Metric] = {}
        for index, line in self._read():
            for name, documentation, kind, samples in json.loads(line):
                family = families.setdefault(name, Metric(name, documentation, kind))
                for sample, labels, value in samples:
                    family.add_sample(sample, {**labels, LABEL: str(index)}, value)
        yield from families.values()
