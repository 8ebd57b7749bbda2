"""An estimate from a measured profile is near what then happens, on the shipped model and a real engine."""

import time
from pathlib import Path

import torch

from engine.engine import Engine
from engine.request import GenerationRequest
from settings import Settings
from storage.workloads import KnownJob, LiveDevice, Workload
from tasks.loading import load_configured
from tasks.profiles import measure_tier
from tasks.self_test_results import SelfTestFolder, machine_facts
from web.estimates.eta import seconds_until_drawn

FACTOR = 3  # other processes may have the processor for most of either time
SIDE = 64
NUM_STEPS = (5, 10, 20, 10, 5, 20, 5, 10, 15)


def test_an_estimate_is_within_a_factor_of_what_happens(kept_self_tests: dict[str, str]) -> None:
    settings, num_threads = Settings(), torch.get_num_threads()
    results = SelfTestFolder(Path(kept_self_tests["CALOTYPE_PROFILES_DIR"]) / "self-tests", machine_facts())
    tier = settings.catalogue.tiers[0].model_copy(update={"default_width": SIDE, "default_height": SIDE})
    try:
        loaded = load_configured(
            settings.catalogue.models,
            config=settings.config,
            device="cpu:0",
            self_test_seconds=settings.self_test_seconds,
            num_threads=1,
            results=results,
        )
        profile = measure_tier(tier, loaded, scheduler="ddim", seconds=0)
        engine = Engine(loaded.models, loaded.row_limits, determinism=loaded.determinism)
        jobs = tuple(
            KnownJob(str(n), tier.name, "interactive", 1, steps, SIDE, SIDE, is_guided=True)
            for n, steps in enumerate(NUM_STEPS)
        )
        device = LiveDevice("boot", (tier.name,), len(jobs), 1, loaded.determinism, 0.0, {tier.name: profile})
        estimates = seconds_until_drawn(Workload((device,), (), jobs), [job.id for job in jobs], {}, {})
        started_at = time.thread_time()
        requests = [
            GenerationRequest(tier.model, f"a red circle {job.id}", SIDE, SIDE, job.num_steps, 2.0, seed=1)
            for job in jobs
        ]
        handles = [engine.submit(request) for request in requests]
        while not engine.is_idle:
            engine.tick()
        seconds = time.thread_time() - started_at
        assert [handle.future.result().num_steps for handle in handles] == list(NUM_STEPS)
    finally:
        torch.set_num_threads(num_threads)
    assert seconds / FACTOR < max(estimates.values()) < seconds * FACTOR
