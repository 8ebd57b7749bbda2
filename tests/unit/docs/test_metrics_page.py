"""docs/reference/metrics.md lists the metrics of each process, and the examples query existing ones."""

import re
from typing import get_args

import pytest
import yaml
from prometheus_client import CollectorRegistry

from engine.policy.policy import Reason
from settings import ROOT
from tasks.metrics.sweeper import SweeperMetrics
from tasks.metrics.worker import WorkerMetrics
from tasks.stages import STAGES
from tasks.webhooks.worker import SenderMetrics
from web.metrics import Metrics

from .conftest import ReadTable

PAGE = "docs/reference/metrics.md"
EXAMPLES = {
    "deploy/prometheus-alerts.yml": 6,
    "deploy/kubernetes/keda/worker-sd.yml": 3,
    "docs/howto/watch-a-fleet.md": 6,
}
"""The metrics that each of these queries at least."""


class Nothing:
    """A fake for every object that the metrics read."""

    num_dispatched = num_failed = num_running = num_queued = 0

    def __len__(self) -> int:
        return 0


def api() -> CollectorRegistry:
    metrics = Metrics()
    metrics.watch_dispatches(Nothing())
    metrics.watch_waiters(lambda: 0)
    metrics.watch_front(Nothing(), Nothing(), dict)
    metrics.watch_queues(dict, [])
    metrics.watch_workers(dict, [])
    metrics.watch_pauses(dict, [])
    metrics.watch_work(list)
    metrics.watch_webhooks(lambda: 0, lambda: 0)
    metrics.watch_receivers(lambda _: 0)
    return metrics.registry


def worker() -> CollectorRegistry:
    metrics = WorkerMetrics()
    metrics.watch_slots({"bulk": 1}, lambda _: 0)
    metrics.watch_device("cuda:0", lambda: 1, lambda: 1)
    metrics.watch_generations(lambda: {"joining": 0})
    return metrics.registry


def sender() -> CollectorRegistry:
    return SenderMetrics().registry


def sweeper() -> CollectorRegistry:
    metrics = SweeperMetrics()
    metrics.watch_dispatches(Nothing())
    metrics.watch_queues(dict)
    return metrics.registry


REGISTRIES = {"API": api, "Worker": worker, "Webhook worker": sender, "Sweeper": sweeper}


def metrics_of(registry: CollectorRegistry) -> dict[str, str]:
    """The kind of each metric of ours."""
    found = {family.name: family.type for family in registry.collect() if family.name.startswith("calotype")}
    return {name + "_total" * (kind == "counter"): kind for name, kind in found.items()}


@pytest.mark.parametrize("process", REGISTRIES)
def test_every_metric_of_a_process_is_documented_and_nothing_else(
    process: str, read_table: ReadTable
) -> None:
    rows = [row for row in read_table(PAGE, f"## {process}") if len(row) == 4]
    assert {row[0].strip("`"): row[1] for row in rows} == metrics_of(REGISTRIES[process]())
    assert all(row[3] for row in rows)


def labels_of(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The label names that each metric of ours was declared with, whether or not it has a sample."""
    found: dict[str, set[str]] = {}
    for collector in list(registry._collector_to_names):
        name = getattr(collector, "_name", "")
        if name.startswith("calotype"):
            kind = getattr(collector, "_type", "gauge")
            labels: tuple[str, ...] = getattr(collector, "_labelnames", ()) or getattr(
                collector, "_labels", ()
            )
            found[name + "_total" * (kind == "counter")] = set(labels)
    return found


@pytest.mark.parametrize("process", REGISTRIES)
def test_every_name_is_calotypes_and_no_label_can_have_many_values(
    process: str, read_table: ReadTable
) -> None:
    declared = labels_of(REGISTRIES[process]())
    rows = {
        row[0].strip("`"): {label.strip("` ") for label in row[2].split(",")} - {""}
        for row in read_table(PAGE, f"## {process}")
        if len(row) == 4
    }
    assert len(declared) > 2
    assert {name: rows[name] for name in declared} == declared
    few = {"tier", "lane", "model", "stage", "state", "code", "reason", "device", "part", "phase"}
    assert set().union(*declared.values()) <= few | {"method", "route", "status"}
    for name in metrics_of(REGISTRIES[process]()):
        assert re.fullmatch(r"calotype(_[a-z]+)+", name)


def test_every_stage_and_every_reason_is_explained(read_table: ReadTable) -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert all(f"`{stage}`" in text for stage in ("queued", *STAGES))
    assert {row[0].strip("`") for row in read_table(PAGE, "### Reasons")} == set(get_args(Reason))


@pytest.mark.parametrize(("path", "least"), EXAMPLES.items())
def test_an_example_queries_metrics_that_exist(path: str, least: int) -> None:
    known = {name for make in REGISTRIES.values() for name in metrics_of(make())}
    histograms = {
        f"{name}_{suffix}"
        for make in REGISTRIES.values()
        for name, kind in metrics_of(make()).items()
        if kind == "histogram"
        for suffix in ("bucket", "sum", "count")
    }
    asked = set(
        re.findall(r"\bcalotype_[a-z_]+[a-z](?=[\s{\[)`])", (ROOT / path).read_text(encoding="utf-8"))
    )
    asked -= {"calotype_data"}  # Compose's network
    assert len(asked) >= least
    assert asked <= known | histograms


def test_the_examples_are_the_yaml_that_prometheus_reads() -> None:
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text(encoding="utf-8"))
    assert [job["job_name"] for job in scrape["scrape_configs"]] == [
        "calotype-api",
        "calotype-sweeper",
        "calotype-webhooks",
        "calotype-workers",
    ]
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus-alerts.yml").read_text(encoding="utf-8"))
    for rule in alerts["groups"][0]["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "annotations"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
