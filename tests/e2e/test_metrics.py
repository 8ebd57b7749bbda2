"""What Prometheus reads of a whole system after real jobs: each process answers, with the right numbers."""

from urllib.parse import urlsplit

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tasks.stages import STAGES, stage_seconds
from tests.e2e.conftest import METRICS_HOST, System

PROMPT = "a red heart on a white background"


class Scrape:
    """The samples of some processes, added up."""

    def __init__(self, system: System, name: str) -> None:
        """Of one service, or of all workers."""
        ready = system.ready
        processes = ready["workers"] if name == "workers" else ready["services"]
        self._samples = [
            sample
            for process in processes
            if name == "workers" or process["name"] == name
            for family in text_string_to_metric_families(
                httpx2.get(process["metrics_url"], timeout=30, trust_env=False).text
            )
            for sample in family.samples
        ]

    def sum(self, name: str, **labels: str) -> float:
        """Nothing counted yet is nothing."""
        found = [
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert found or name.endswith(("_total", "_sum", "_count")), name
        return sum(found)


@pytest.fixture(autouse=True)
def _both_workers(system: System) -> None:
    system.wait_for_workers()


def submit(system: System, **changes: object) -> str:
    return str(system.api.submit({"prompt": PROMPT, "num_inference_steps": 4, **changes})["id"])


def test_a_workers_numbers_are_those_of_its_jobs(system: System) -> None:
    before = Scrape(system, "workers")
    ids = [submit(system, num_images=2, seed=seed) for seed in range(6)]
    done = system.finish(ids)
    failed = submit(
        system, num_inference_steps=150, width=192, height=192, num_images=4, deadline_seconds=0.7
    )
    canceled = submit(system, num_inference_steps=150, width=192, height=192, num_images=4)
    system.wait_until(lambda: system.api.job(canceled)["state"] == "running", 30, "it runs")
    system.api.cancel(canceled)
    states = [job["state"] for job in system.finish([failed, canceled])]
    assert states == ["failed", "canceled"]
    after = Scrape(system, "workers")

    def grown(name: str, **labels: str) -> float:
        return after.sum(name, **labels) - before.sum(name, **labels)

    assert grown("calotype_jobs_settled_total", tier="sd", lane="interactive", state="succeeded") == 6
    assert grown("calotype_jobs_settled_total", tier="hd", state="failed") == 1
    assert grown("calotype_jobs_settled_total", tier="hd", state="canceled") == 1
    assert grown("calotype_job_failures_total", tier="hd", code="deadline_exceeded") == 1
    assert grown("calotype_images_total", tier="sd", lane="interactive") == 12
    device_seconds = sum(job["timings"]["device_seconds"] for job in done)
    assert grown("calotype_device_seconds_total", tier="sd") == pytest.approx(device_seconds, rel=0.01)
    for stage in STAGES:
        labels = {"tier": "sd", "lane": "interactive", "stage": stage}
        assert grown("calotype_job_stage_seconds_count", **labels) == 6
        took = sum(stage_seconds(job["timings"])[stage] for job in done)
        assert grown("calotype_job_stage_seconds_sum", **labels) == pytest.approx(took, abs=0.001)
    assert grown("calotype_job_stage_seconds_count", tier="sd", stage="queued") == 6
    num_batches = grown("calotype_step_batch_rows_count", model="tiny")
    assert num_batches == grown("calotype_step_batches_total", model="tiny")
    assert num_batches == grown("calotype_step_seconds_count", model="tiny") > 0
    assert grown("calotype_step_batch_rows_sum", model="tiny") > num_batches, "guidance makes two rows"
    assert after.sum("calotype_slots", lane="interactive") == 24, "as configured"
    assert 24 <= after.sum("calotype_slots", lane="bulk") <= 48, "by the row cap of each worker, at most 16"
    assert after.sum("calotype_held_jobs", lane="interactive") >= 0
    assert after.sum("calotype_generations") >= 0
    assert after.sum("calotype_process_peak_memory_bytes") >= after.sum("process_resident_memory_bytes") > 1e8


def test_the_sweeper_tells_how_old_the_oldest_job_is_and_that_it_turns(system: System) -> None:
    before = Scrape(system, "sweep").sum("calotype_sweeps_total")
    system.wait_until(
        lambda: Scrape(system, "sweep").sum("calotype_sweeps_total") > before, 30, "the sweeper turns"
    )
    ids = [submit(system, num_inference_steps=150, width=192, height=192, num_images=4) for _ in range(14)]
    try:
        system.wait_until(
            lambda: Scrape(system, "sweep").sum("calotype_queue_age_seconds", tier="hd") > 0.2,
            60,
            "two of them wait for a slot",
        )
        system.wait_until(
            lambda: Scrape(system, "workers").sum("calotype_held_jobs", lane="interactive") == 12,
            60,
            "every slot of the worker of hd is taken",
        )
    finally:
        for job_id in ids:
            system.api.cancel(job_id)
    system.finish(ids)
    assert Scrape(system, "sweep").sum("calotype_queue_age_seconds", tier="hd") == 0


def test_every_process_of_ours_answers_prometheus_at_the_host_that_is_set(system: System) -> None:
    processes = system.ready["services"] + system.ready["workers"]
    urls = [process["metrics_url"] for process in processes if "metrics_url" in process]
    assert {urlsplit(url).hostname for url in urls} == {METRICS_HOST}
    assert len(urls) == 5
    assert Scrape(system, "web").sum("calotype_requests_total") > 0
    assert Scrape(system, "webhooks").sum("process_resident_memory_bytes") > 0
