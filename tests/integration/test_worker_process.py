"""The promises of the worker's process: it does not start half."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from catalogue.states import TERMINAL, State
from cli.terminal import EXIT_USAGE
from local.endpoints import Embedded
from settings import ROOT
from storage import dispatches, submissions
from storage.database import Database
from storage.job_views import get
from storage.workers import Worker, heartbeat
from tasks.app import make_celery
from tasks.dispatch import Dispatcher
from tasks.worker import EXIT_NO_ENGINE
from tests.fixtures.new_jobs import new_job


def run_worker(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", "worker", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_worker_whose_engine_cannot_be_loaded_exits_non_zero_and_says_why(
    migrated: Embedded, tmp_path: Path
) -> None:
    config = tmp_path / "calotype.toml"
    text = (ROOT / "calotype.toml").read_text()
    config.write_text(text.replace("models/tiny", str(tmp_path / "no-such-model")))
    answer = run_worker(
        {**migrated.environment_of("worker"), "CALOTYPE_CONFIG": str(config)}, "--device", "cpu:0"
    )
    assert answer.returncode == EXIT_NO_ENGINE
    assert "no-such-model" in answer.stderr


def test_a_worker_that_cannot_reach_the_hub_ends_with_71_and_one_line(
    migrated: Embedded, tmp_path: Path
) -> None:
    config = tmp_path / "calotype.toml"
    pinned = f'path = "nobody/tiny"\nrevision = "{"0" * 40}"\nlocal_files_only = false'
    text = (ROOT / "calotype.toml").read_text()
    assert 'path = "models/tiny"' in text
    config.write_text(text.replace('path = "models/tiny"', pinned))
    hub = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    environment = {**migrated.environment_of("worker"), **hub, "CALOTYPE_CONFIG": str(config)}
    answer = run_worker(environment, "--device", "cpu:0")
    assert answer.returncode == EXIT_NO_ENGINE
    lines = [json.loads(line) for line in answer.stderr.splitlines() if line.startswith("{")]
    (line,) = (line for line in lines if line["event"] == "engine_not_loaded")
    assert line["code"] == "model_not_loadable"
    for part in ("'tiny'", "'nobody/tiny' at 0000", "http://127.0.0.1:1 cannot be reached", "hf download"):
        assert part in line["error"]
    assert "Traceback" not in answer.stderr


def test_a_mistyped_tier_is_refused_by_name(migrated: Embedded) -> None:
    answer = run_worker(migrated.environment_of("worker"), "--device", "cpu:0", "--tiers", "sd,uhd")
    assert answer.returncode == EXIT_USAGE
    assert "uhd" in answer.stderr


def test_a_device_that_is_not_there_is_refused_by_name(migrated: Embedded) -> None:
    answer = run_worker(migrated.environment_of("worker"), "--device", "cuda:77")
    assert answer.returncode == EXIT_USAGE
    assert "cuda:77" in answer.stderr


def wait_for(holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_S38_a_start_after_the_first_uses_what_was_tested_and_says_where_its_seconds_went(
    migrated: Embedded, tmp_path: Path
) -> None:
    profiles = tmp_path / "profiles"
    first, second = (ready_line(migrated, profiles, tmp_path / f"{n}.log") for n in (1, 2))
    assert second["determinism"] == first["determinism"]
    assert first["start_seconds"].keys() == second["start_seconds"].keys()
    assert first["start_seconds"].keys() == {"import", "load", "self_test", "connect", "total"}
    assert "' starts: " in (tmp_path / "1.log").read_text()
    assert "' starts: " not in (tmp_path / "2.log").read_text()
    assert "'exact', stored at" in (tmp_path / "2.log").read_text()


def ready_line(migrated: Embedded, profiles: Path, log: Path) -> dict[str, Any]:
    """What a worker says once it takes jobs; it is killed then, as a crash would."""
    command = [sys.executable, "-m", "cli", "worker", "--device", "cpu:0"]
    environment = {**os.environ, **migrated.environment, "CALOTYPE_PROFILES_DIR": str(profiles)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=output)
    try:
        wait_for(lambda: b"worker_ready" in log.read_bytes(), 120)
    finally:
        process.kill()
        process.wait()
    line: dict[str, Any] = next(
        json.loads(line) for line in log.read_text().splitlines() if '"worker_ready"' in line
    )
    return line


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_a_worker_told_to_stop_gives_back_what_it_cannot_finish_and_charges_nothing(
    migrated: Embedded,
    database: Database,
    account: str,
    tmp_path: Path,
    kept_self_tests: dict[str, str],
    lane: str,
) -> None:
    """A bulk job is begun without a message and without a sweeper, as soon as Postgres tells of it."""
    prefix = "calotype:"  # the one that the worker's key is good for
    environment = {
        **os.environ,
        **kept_self_tests,
        **migrated.environment_of("worker"),
        "CALOTYPE_BROKER_KEY_PREFIX": prefix,
        "CALOTYPE_DRAIN_SECONDS": "0.2",
        "CALOTYPE_SWEEP_SECONDS": "600",  # as often as it looks for bulk jobs by itself
    }
    ready_file = tmp_path / "ready.json"
    command = [sys.executable, "-m", "cli", "worker", "--device", "cpu:0", "--ready-file", str(ready_file)]
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=output)
    try:
        wait_for(ready_file.exists, 120)
        size = {"width": 192, "height": 192, "num_inference_steps": 150, "num_images": 4}
        new = new_job(account, tier="hd", lane=lane, **size)
        job, *_ = submissions.create(database, new, redispatch_seconds=15)
        dispatch = dispatches.of_new_job(database, job.id)
        assert (dispatch is None) == (lane == "bulk")
        if dispatch is not None:
            tiers = ["sd", "hd"]
            assert Dispatcher(make_celery(migrated.broker_url, prefix, tiers)).dispatch([dispatch])
        wait_for(lambda: get(database, account, job.id).state is State.RUNNING, 120)
        if lane == "interactive":
            with redis.Redis.from_url(migrated.broker_url) as broker:
                before = num_asked(broker)
                wait_for(lambda: beside_another(database) and num_asked(broker) > before, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    after = get(database, account, job.id)
    assert (after.state, after.num_failures, after.quarantined) == (State.QUEUED, 0, False)
    assert not ready_file.exists()
    events = [json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{")]
    assert {"worker_ready", "job_settled"} <= set(events), "Celery must not raise the log level"


def test_a_supervisor_that_stops_a_worker_which_ends_by_itself_does_not_cut_its_jobs_short(
    migrated: Embedded, database: Database, account: str, tmp_path: Path, kept_self_tests: dict[str, str]
) -> None:
    """The worker ends after its first job, while another one runs; then its supervisor restarts the fleet."""
    prefix, ready_file = "calotype:", tmp_path / "ready.json"
    environment = {
        **os.environ,
        **kept_self_tests,
        **migrated.environment_of("worker"),
        "CALOTYPE_BROKER_KEY_PREFIX": prefix,
        "CALOTYPE_WORKER_MAX_JOBS": "1",
    }
    command = [sys.executable, "-m", "cli", "worker", "--device", "cpu:0", "--ready-file", str(ready_file)]
    dispatcher = Dispatcher(make_celery(migrated.broker_url, prefix, ["sd", "hd"]))

    def submit(num_inference_steps: int, **request: Any) -> str:
        new = new_job(account, num_inference_steps=num_inference_steps, **request)
        job, *_ = submissions.create(database, new, redispatch_seconds=15)
        dispatch = dispatches.of_new_job(database, job.id)
        assert dispatch is not None
        assert dispatcher.dispatch([dispatch])
        return job.id

    def state(job_id: str) -> State:
        return get(database, account, job_id).state

    with (tmp_path / "worker.log").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=output)
    try:
        wait_for(ready_file.exists, 120)
        long = submit(150, tier="hd", width=192, height=192, num_images=4)
        wait_for(lambda: state(long) is State.RUNNING, 120)
        short = submit(1)
        wait_for(lambda: not ready_file.exists(), 120)
        assert (state(short), state(long)) == (State.SUCCEEDED, State.RUNNING)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
    assert state(long) is State.SUCCEEDED


def beside_another(database: Database) -> bool:
    """Let the worker hear of another one with its next heartbeat: then it asks while it has jobs."""
    other = Worker("cpu:9@other", "boot-other", "other", 1, "cpu:9", ("sd", "hd"), 1, 1, "exact")
    heartbeat(database, other, [], lease_seconds=30)
    return True


def num_asked(broker: "redis.Redis") -> int:
    """How often workers have polled without waiting."""
    return int(broker.info("commandstats").get("cmdstat_lmpop", {"calls": 0})["calls"])


OWN_PARAMETER = """
[models.tiny.parameters.guidance_rescale]
type = "float"
min = 0.0
max = 1.0
"""


def test_a_worker_draws_with_diffusers_own_pipeline_and_the_parameters_of_its_model(
    migrated: Embedded, database: Database, account: str, tmp_path: Path
) -> None:
    config = tmp_path / "calotype.toml"
    text = (ROOT / "calotype.toml").read_text().replace("models/tiny", str(ROOT / "models/tiny"))
    text = text.replace('family = "stable_diffusion"', 'family = "diffusers"\nstep_cache = true')
    config.write_text(text.replace('schedulers = ["ddim"', 'schedulers = ["default", "ddim"') + OWN_PARAMETER)
    prefix, ready_file, log = "calotype:", tmp_path / "ready.json", tmp_path / "worker.log"
    environment = {
        **os.environ,
        **migrated.environment_of("worker"),
        "CALOTYPE_CONFIG": str(config),
        "CALOTYPE_BROKER_KEY_PREFIX": prefix,
        "CALOTYPE_SELF_TEST_SECONDS": "1",
    }
    command = [sys.executable, "-m", "cli", "worker", "--device", "cpu:0", "--tiers", "sd"]
    command += ["--ready-file", str(ready_file)]
    # Strict, as a self-test of one second promises no equal bytes in the company of others.
    own: dict[str, Any] = {"scheduler": "default", "step_cache": 3, "num_inference_steps": 8, "strict": True}
    new = [
        new_job(account, **own, pipeline_parameters={"guidance_rescale": rescale})
        for rescale in (0.0, 0.7, 0.7)
    ]
    jobs = [submissions.create(database, one, redispatch_seconds=15)[0] for one in new]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=output)
    try:
        wait_for(ready_file.exists, 120)
        found = [dispatch for job in jobs if (dispatch := dispatches.of_new_job(database, job.id))]
        assert Dispatcher(make_celery(migrated.broker_url, prefix, ["sd", "hd"])).dispatch(found)
        wait_for(lambda: all(get(database, account, one.id).state in TERMINAL for one in jobs), 120)
    finally:
        process.kill()
        process.wait()
    after = [get(database, account, job.id) for job in jobs]
    assert [job.state for job in after] == [State.SUCCEEDED] * 3
    plain, rescaled, again = ([image.sha256 for image in job.images] for job in after)
    assert plain != rescaled
    assert rescaled == again
