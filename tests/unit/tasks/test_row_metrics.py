"""Metrics that are read from Postgres are absent while it is slow, and keep no other metric waiting."""

import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from storage.errors import Unavailable
from tasks.metrics.collectors import RowCollector, RowCollectors

SOON = 60.0


class Postgres:
    """A database that answers once it may."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.num_reads = 0

    def read(self) -> Iterator[tuple[list[str], float]]:
        self.num_reads += 1
        assert self.may_answer.wait(SOON)
        yield [], self.num_reads


def registry_of(rows: RowCollectors, *reads: object) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(rows)
    Counter("of_the_process", "Its own.", registry=registry)
    for number, read in enumerate(reads):
        rows.add(RowCollector.of_one(f"rows_{number}", "Rows.", [], read))  # type: ignore[arg-type]
    return registry


def value_of(registry: CollectorRegistry, name: str) -> float | None:
    """The value, once the thread that reads it has run."""
    values = (registry.get_sample_value(name) for _ in range(3000))
    return next((value for value in values if value is not None), None)


def scraped(registry: CollectorRegistry) -> dict[str, float]:
    """All values of one scrape."""
    return {sample.name: sample.value for family in registry.collect() for sample in family.samples}


def test_what_is_read_too_late_is_absent_and_the_rest_is_there() -> None:
    slow = Postgres()
    rows = RowCollectors(max_seconds=0.01)
    registry = registry_of(rows, lambda: [([], 7)], slow.read, lambda: [([], 8)])
    first = scraped(registry)
    assert first["of_the_process_total"] == 0
    assert "rows_1" not in first
    assert "rows_2" not in first
    later = scraped(registry)
    assert later["of_the_process_total"] == 0
    assert not {"rows_0", "rows_1", "rows_2"} & later.keys(), "values of an earlier scrape are old"
    assert slow.num_reads == 1, "a reading that lasts is not joined by others"
    slow.may_answer.set()
    assert value_of(registry, "rows_2") == 8
    assert value_of(registry, "rows_1")


@pytest.mark.parametrize("error", [Unavailable("away"), ZeroDivisionError()])
def test_a_metric_that_cannot_be_read_ends_the_reading(error: Exception) -> None:
    errors = [error]

    def read() -> Iterator[tuple[list[str], float]]:
        if errors:
            raise errors.pop()
        yield [], 3

    rows = RowCollectors(max_seconds=SOON)
    registry = registry_of(rows, read)
    assert registry.get_sample_value("rows_0") is None
    assert registry.get_sample_value("rows_0") == 3
