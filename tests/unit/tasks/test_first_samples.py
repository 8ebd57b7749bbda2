"""The promise to `increase()`: a counter is there before its first event, so that the first is not missed."""

from prometheus_client import CollectorRegistry

from tasks.metrics.sweeper import SweeperMetrics
from tasks.metrics.worker import WorkerMetrics
from tasks.webhooks.client import ATTEMPT_CODES
from tasks.webhooks.worker import SenderMetrics


def values(registry: CollectorRegistry, name: str, label: str) -> set[str]:
    return {
        sample.labels[label]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name and sample.value == 0
    }


def test_what_a_sender_counts_begins_with_zero() -> None:
    registry = SenderMetrics().registry
    states = values(registry, "calotype_webhook_attempts_total", "state")
    assert states == {"delivered", "pending", "failed", "lost"}
    codes = values(registry, "calotype_webhook_failures_total", "code")
    assert codes >= {*ATTEMPT_CODES.values(), "http_status", "redirect", "gone", "internal_error"}


def test_deaths_of_workers_begin_with_zero() -> None:
    metrics = SweeperMetrics(["sd"])
    metrics.begin_failures(["reap", "feed"])
    assert values(metrics.registry, "calotype_jobs_reaped_total", "state") == {"queued", "failed", "canceled"}
    assert "worker_lost" in values(metrics.registry, "calotype_jobs_failed_total", "code")
    assert values(metrics.registry, "calotype_sweep_failures_total", "part") == {"reap", "feed"}
    assert values(metrics.registry, "calotype_redispatches_total", "lane") == {"interactive"}


def test_failures_of_a_worker_begin_with_zero() -> None:
    codes = values(WorkerMetrics(["sd"]).registry, "calotype_job_failures_total", "code")
    assert codes >= {"out_of_memory", "generation_impossible", "invalid_prompt", "storage_unavailable"}
    assert codes >= {"internal_error", "blob_conflict"}
