"""Both workers are killed in turn under load: the short form of `make bench-kills`."""

import pytest

from bench.kill_figures import MAX_REAP_TO_CLAIM_SECONDS, Event, Outcome, kills_of
from tests.e2e.conftest import PATIENCE, System

NUM_JOBS = 36
REQUESTS = [
    {
        "prompt": "a red heart on a white background",
        "seed": number,
        "num_inference_steps": (12, 30, 50)[number % 3],
        "guidance_scale": (1.0, 4.0)[number % 2],
        "lane": ("interactive", "bulk")[number // 2 % 2],
    }
    for number in range(NUM_JOBS)
]


@pytest.mark.timeout(1800)
def test_S38_both_workers_killed_in_turn_lose_nothing_and_change_no_byte(system: System) -> None:
    wait_for_workers(system)
    job_ids = submit(system)
    for device in ("cpu:0", "cpu:1"):
        kill_at_work(system, device, job_ids)
    disturbed = system.finish(job_ids)
    undisturbed = system.finish(submit(system))
    outcomes = [
        Outcome(one["state"], sums(one), sums(other))
        for one, other in zip(disturbed, undisturbed, strict=True)
    ]
    kills = kills_of(outcomes, events(system, job_ids), num_kills=2, start_to_claim_seconds=[])
    assert (kills.num_lost, kills.num_doubled, kills.num_differing) == (0, 0, 0)
    assert kills.num_reaped > 0
    assert max(kills.reap_to_claim_seconds) <= PATIENCE * MAX_REAP_TO_CLAIM_SECONDS


def kill_at_work(system: System, device: str, job_ids: list[str]) -> None:
    """Once it holds jobs; it is back when this returns."""
    held = "SELECT count(*) FROM jobs WHERE state = 'running' AND worker LIKE %s AND id = ANY(%s)"
    system.wait_until(lambda: system.rows(held, f"{device}@%", job_ids)[0][0], 60, "it works")
    killed = system.kill(device)
    system.wait_until(lambda: killed not in pids(system), 60, "it is replaced")


def wait_for_workers(system: System) -> None:
    system.wait_until(lambda: len(pids(system)) == 2, 60, "both workers are up")


def pids(system: System) -> list[int]:
    return [int(worker["pid"]) for worker in system.ready["workers"]]


def submit(system: System) -> list[str]:
    return [str(system.api.submit(request)["id"]) for request in REQUESTS]


def sums(job: dict[str, list[dict[str, str]]]) -> tuple[str, ...]:
    return tuple(image["sha256"] for image in job["images"])


def events(system: System, job_ids: list[str]) -> list[Event]:
    statement = """SELECT job_id, transition, state, detail, extract(epoch FROM created_at)::float8
                     FROM job_events WHERE job_id = ANY(%s) ORDER BY id"""
    return [Event(*row) for row in system.rows(statement, job_ids)]
