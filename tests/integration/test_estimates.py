"""An estimate from a measured profile is near what then happens, on the shipped model and a real engine."""

import time

import torch

from engine.engine import Engine
from engine.request import GenerationRequest
from settings import Settings
from storage.workloads import KnownJob, LiveDevice, Workload
from tasks.profiles import measure_tier, stored_profile
from tasks.worker import load_planned
from web.estimates.eta import seconds_until_drawn

FACTOR = 3  # other processes may have the processor for most of either time
NUM_STEPS = (5, 10, 20, 10, 5, 20, 5, 10, 15)


def test_an_estimate_is_within_a_factor_of_what_happens() -> None:
    settings, num_threads = Settings(), torch.get_num_threads()
    tier = settings.catalogue.tiers[0]
    try:
        loaded = load_planned(settings, settings.catalogue.models, device="cpu:0", num_threads=1)
        profile = stored_profile(tier, measure_tier(tier, loaded, scheduler="ddim", seconds=0))
        engine = Engine(loaded.models, loaded.row_limits, determinism=loaded.determinism)
        jobs = tuple(
            KnownJob(str(n), tier.name, "interactive", 1, steps, 128, 128, is_guided=True)
            for n, steps in enumerate(NUM_STEPS)
        )
        device = LiveDevice("boot", (tier.name,), len(jobs), 1, loaded.determinism, 0.0, {tier.name: profile})
        estimates = seconds_until_drawn(Workload((device,), (), jobs), [job.id for job in jobs], {}, {})
        started_at = time.thread_time()
        handles = [
            engine.submit(
                GenerationRequest(tier.model, f"a red circle {job.id}", 128, 128, job.num_steps, 2.0, seed=1)
            )
            for job in jobs
        ]
        while not engine.is_idle:
            engine.tick()
        seconds = time.thread_time() - started_at
        assert [handle.future.result().num_steps for handle in handles] == list(NUM_STEPS)
    finally:
        torch.set_num_threads(num_threads)
    assert seconds / FACTOR < max(estimates.values()) < seconds * FACTOR
