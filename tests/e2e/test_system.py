"""The promises of the whole system, over HTTP, with real everything and the shipped model."""

import hashlib
import io
import random
import time
from pathlib import Path

import httpx2
import psutil
import pytest
from PIL import Image

from tests.e2e.conftest import Json, System, ended

PROMPT = "a red heart on a white background"


def submit(system: System, **changes: object) -> str:
    return str(system.api.submit({"prompt": PROMPT, "num_inference_steps": 4, **changes})["id"])


def bytes_of(system: System, job: Json) -> list[bytes]:
    return [system.api.download(image["url"]) for image in job["images"]]


def test_the_ready_file_says_where_everything_is(system: System) -> None:
    ready = system.ready
    assert {
        "url",
        "api_key",
        "flower_url",
        "flower_auth",
        "database_url",
        "broker_url",
        "s3_endpoint",
    } <= set(ready)
    assert {service["name"] for service in ready["services"]} >= {
        "postgres",
        "valkey",
        "s3",
        "web",
        "webhooks",
        "sweep",
        "flower",
    }
    assert [(worker["device"], worker["tiers"]) for worker in ready["workers"]] == [
        ("cpu:0", ["sd"]),
        ("cpu:1", ["sd", "hd"]),
    ]
    assert ready["workers"][1]["queues"] == ["sd.interactive", "hd.interactive"]
    assert all(psutil.pid_exists(entry["pid"]) for entry in ready["services"] + ready["workers"])


def test_no_secret_is_on_a_command_line(system: System) -> None:
    ready = system.ready
    secrets = [ready["api_key"], ready["flower_auth"].partition(":")[2], ready["s3_secret_key"]]
    secrets.append(ready["database_url"].partition("://")[2].partition("@")[0].partition(":")[2])
    secrets.append(ready["broker_url"].partition("@")[0].rpartition(":")[2])
    for entry in ready["services"] + ready["workers"]:
        arguments = " ".join(psutil.Process(entry["pid"]).cmdline())
        assert not any(secret in arguments for secret in secrets)


def test_a_job_becomes_a_png_of_the_size_that_was_asked_for(system: System) -> None:
    job_ids = [submit(system), submit(system, width=192, height=192), submit(system, width=64, height=96)]
    for job, size in zip(system.finish(job_ids), [(128, 128), (192, 192), (64, 96)], strict=True):
        assert job["state"] == "succeeded"
        data = bytes_of(system, job)[0]
        picture = Image.open(io.BytesIO(data))
        assert (picture.format, picture.size) == ("PNG", size)
        assert hashlib.sha256(data).hexdigest() == job["images"][0]["sha256"]


def test_image_i_of_a_job_is_the_single_image_of_seed_plus_i(system: System) -> None:
    job_ids = [submit(system, num_images=3, seed=40)] + [submit(system, seed=40 + i) for i in range(3)]
    many, *singles = system.finish(job_ids)
    assert bytes_of(system, many) == [bytes_of(system, single)[0] for single in singles]


def test_sixty_jobs_run_on_workers_that_serve_their_tier_in_step_batches_and_seeds_give_the_same_bytes(
    system: System,
) -> None:
    rng = random.Random(3)
    requests = [
        {
            "seed": rng.randrange(2**32),
            "num_inference_steps": rng.choice([4, 8, 12]),
            "guidance_scale": rng.choice([1.0, 4.0]),
            "scheduler": rng.choice(["ddim", "euler"]),
            **({"width": 192, "height": 192} if number % 6 == 0 else {}),
        }
        for number in range(60)
    ]
    jobs = system.finish([submit(system, **request) for request in requests])
    assert [job["state"] for job in jobs] == ["succeeded"] * 60
    serves = {worker["device"]: worker["tiers"] for worker in system.ready["workers"]}
    devices = [job["worker"].partition("@")[0] for job in jobs]
    assert all(job["tier"] in serves[device] for job, device in zip(jobs, devices, strict=True))
    assert set(devices) == {"cpu:0", "cpu:1"}
    batch_sizes = [job["timings"]["mean_step_batch"] for job in jobs]
    assert sum(batch_sizes) / len(batch_sizes) > 1
    again = system.finish([submit(system, **request) for request in requests[:12]])
    for first, second in zip(jobs, again, strict=False):
        assert first["images"][0]["sha256"] == second["images"][0]["sha256"]
    published = system.rows("SELECT avg(dispatch_seq)::float8 FROM jobs WHERE state = 'succeeded'")[0][0]
    assert published <= 1.1


def test_a_csv_becomes_images_and_a_results_file(system: System, tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    rows = (f"{PROMPT},4,{n},csv-{n % 2}\n" for n in range(10))
    path.write_text("prompt,num_inference_steps,seed,tag\n" + "".join(rows))
    batch = system.api.submit_csv(path)
    batch = system.wait_until(
        lambda: (found := system.api.batch(batch["id"]))["state"] != "running" and found, 60, "the batch ends"
    )
    assert batch["state"] == "succeeded"
    ready = system.ready
    headers = {"Authorization": f"Bearer {ready['api_key']}"}
    results = httpx2.get(
        f"{ready['url']}/v1/batches/{batch['id']}/results.csv", headers=headers, trust_env=False
    )
    assert len(results.text.splitlines()) == 11
    jobs = [job.raw for job in system.api.client.jobs(batch_id=batch["id"])]
    for job in jobs:
        assert job["cost"]["amount"] == pytest.approx(0.01 * job["timings"]["device_seconds"], abs=1e-8)
    usage = system.api.client.usage(by=("tag",), batch_id=batch["id"])
    assert [(row.tag, row.num_jobs) for row in usage.rows] == [("csv-0", 5), ("csv-1", 5)]
    for sums in (usage.total.raw, batch):
        assert sums["device_seconds"] == pytest.approx(sum(job["timings"]["device_seconds"] for job in jobs))
        assert sums["cost"]["amount"] == pytest.approx(sum(job["cost"]["amount"] for job in jobs))


def test_an_interactive_job_starts_within_two_step_batches_while_every_worker_is_full_of_bulk(
    system: System, tmp_path: Path
) -> None:
    path = tmp_path / "bulk.csv"
    path.write_text("prompt,num_inference_steps\n" + f"{PROMPT},50\n" * 60)
    batch = system.api.submit_csv(path)
    running = "SELECT count(*) FROM jobs WHERE batch_id = %s AND state = 'running'"
    num_slots = system.rows("SELECT sum(bulk_slots) FROM workers WHERE stopped_at IS NULL")[0][0]
    system.wait_until(
        lambda: system.rows(running, batch["id"])[0][0] >= num_slots, 60, "every bulk slot is taken"
    )
    jobs = system.finish([submit(system, seed=n) for n in range(4)])
    assert max(job["timings"]["num_ticks_waited"] for job in jobs) <= 2
    system.api.cancel_batch(batch["id"])
    system.wait_until(lambda: system.api.batch(batch["id"])["state"] != "running", 30, "the rest is canceled")
    assert system.rows("SELECT count(*) FROM jobs WHERE batch_id = %s AND state = 'canceled'", batch["id"])[
        0
    ][0]


def test_a_running_job_can_be_canceled(system: System) -> None:
    job_id = submit(system, num_inference_steps=150, width=192, height=192, num_images=4)
    system.wait_until(lambda: system.api.job(job_id)["state"] == "running", 30, "it runs")
    system.api.cancel(job_id)
    job = system.finish([job_id], seconds=30)[0]
    assert (job["state"], job["images"]) == ("canceled", [])


def test_a_job_whose_worker_is_killed_ends_once_and_well(system: System) -> None:
    job_id = submit(system, num_inference_steps=50)
    job = system.wait_until(
        lambda: (found := system.api.job(job_id))["state"] == "running" and found, 30, "it runs"
    )
    killed_at = system.rows("SELECT clock_timestamp()")[0][0]
    killed = system.kill(job["worker"].partition("@")[0])
    job = system.wait_until(lambda: ended(found := system.api.job(job_id)) and found, 60, "it ends")
    assert (job["state"], len(job["images"])) == ("succeeded", 1)
    assert job["attempt"] == 2
    events = system.rows("SELECT transition FROM job_events WHERE job_id = %s ORDER BY id", job_id)
    assert [row[0] for row in events] == ["claim", "reap", "claim", "finish"]
    reaped_at = system.rows(
        "SELECT created_at FROM job_events WHERE job_id = %s AND transition = 'reap'", job_id
    )[0][0]
    lease_seconds = 30
    assert (reaped_at - killed_at).total_seconds() < lease_seconds / 2, "its supervisor ended its lease"
    system.wait_until(
        lambda: killed not in [worker["pid"] for worker in system.ready["workers"]], 60, "it is replaced"
    )


def test_nothing_accepted_is_lost_when_the_broker_is_killed(system: System) -> None:
    system.wait_until(lambda: len(system.ready["workers"]) == 2, 60, "both workers are up")
    lanes = ("interactive", "bulk")
    before = [submit(system, seed=n, lane=lanes[n % 2]) for n in range(8)]
    system.kill("valkey")
    during = [submit(system, seed=n, lane=lanes[n % 2]) for n in range(8)]
    jobs = system.finish(before + during, seconds=120)
    assert {job["state"] for job in jobs} == {"succeeded"}
    claims = system.rows(
        "SELECT count(*) FROM job_events WHERE transition = 'claim' AND job_id = ANY(%s) GROUP BY job_id",
        before + during,
    )
    assert [row[0] for row in claims] == [1] * 16, "each job ran once"


def test_S24_progress_moves_while_a_job_runs_and_never_falls(system: System) -> None:
    """A heartbeat, every five seconds, is not what brings it."""
    job_id = submit(system, num_inference_steps=100, width=192, height=192, num_images=2)
    seen: list[float] = []
    while not ended(job := system.api.job(job_id)):
        if job["state"] == "running":
            seen.append(job["progress"])
        time.sleep(0.02)  # it moves twice a second at most
    seconds = system.rows(
        "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM jobs WHERE id = %s", job_id
    )[0][0]
    assert job["state"] == "succeeded"
    assert seen == sorted(seen)
    num_moves = len(set(seen)) - 1
    assert num_moves > 2 + seconds / 5, "more often than by heartbeats"
    assert num_moves <= 2 + 2 * seconds + seconds / 5, "twice a second at most, and by heartbeats"
    assert job["progress"] == 1
