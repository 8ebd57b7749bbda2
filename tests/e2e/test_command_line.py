"""The promises of the command line, against the running system."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from rich.console import Console

from client.calotype import ApiError
from local.roles import ROLES, S3_ROLES
from settings import ROOT
from storage.roles import ROLES as DATABASE_ROLES
from tests.e2e.conftest import System
from tiny.demo import run_demo

PROMPT = "a red heart on a white background"


def calotype(system: System, *arguments: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    ready = system.ready
    environment = {
        "CALOTYPE_URL": ready["url"],
        "CALOTYPE_API_KEY": ready["api_key"],
        "CALOTYPE_DATABASE_URL": ready["database_url"],
        "CALOTYPE_DATA_DIR": ready["data_dir"],
    }
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment, **changes},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_submit_saves_the_image_and_get_shows_the_job(system: System, tmp_path: Path) -> None:
    path = tmp_path / "heart.png"
    answer = calotype(system, "submit", PROMPT, "--steps", "4", "-o", str(path), "--json")
    assert answer.returncode == 0, answer.stderr
    job = json.loads(answer.stdout)
    with Image.open(path) as picture:
        assert (job["state"], picture.size) == ("succeeded", (128, 128))
    again = tmp_path / "again.png"
    shown = json.loads(calotype(system, "get", job["id"], "-o", str(again), "--json").stdout)
    assert shown["id"] == job["id"]
    assert again.read_bytes() == path.read_bytes()
    assert f"{job['id']} succeeded, 100 %" in answer.stderr.splitlines()


def test_csv_saves_every_image_under_its_line(system: System, tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,num_inference_steps\n" + f"{PROMPT},2\n" * 3)
    answer = calotype(system, "csv", str(path), "-o", str(tmp_path / "out"), "--json")
    assert (answer.returncode, json.loads(answer.stdout)["state"]) == (0, "succeeded")
    batch_id = json.loads(answer.stdout)["id"]
    assert sorted(image.name for image in (tmp_path / "out").iterdir()) == [
        "00002-0.png",
        "00003-0.png",
        "00004-0.png",
        f"{batch_id}-results.csv",
    ]


def test_S22_results_that_csv_saved_are_submitted_again_and_nothing_is_drawn_twice(
    system: System, tmp_path: Path
) -> None:
    path, out = tmp_path / "prompts.csv", tmp_path / "out"
    path.write_text(f"prompt;num_inference_steps;seed\n{PROMPT};2;1\n{PROMPT};2;2\n")
    first = calotype(system, "csv", str(path), "-o", str(out))
    assert "read as semicolons, UTF-8" in first.stderr.splitlines()
    (results,) = out.glob("*-results.csv")
    again = calotype(system, "csv", str(results), "-o", str(out), "--json")
    batch = json.loads(again.stdout)
    assert (again.returncode, batch["state"], batch["num_jobs"]) == (0, "succeeded", 0)
    assert batch["rows"]["already_succeeded"] == 2
    assert (out / f"{batch['id']}-results.csv").read_bytes() == results.read_bytes()
    elsewhere = tmp_path / "elsewhere"
    assert calotype(system, "csv", str(results), "-o", str(elsewhere)).returncode == 0
    images = {image.name: image.read_bytes() for image in out.glob("*.png")}
    assert sorted(images) == ["00002-0.png", "00003-0.png"]
    assert {image.name: image.read_bytes() for image in elsewhere.glob("*.png")} == images
    retried = calotype(system, "csv", "--retry", batch["id"])
    assert (retried.returncode, "rows: 2 already succeeded" in retried.stderr.splitlines()) == (0, True)


def test_a_new_key_opens_the_door_and_a_revoked_one_does_not(system: System) -> None:
    key = json.loads(calotype(system, "keys", "create", "test", "--account", "cli", "--json").stdout)
    arguments = ("submit", PROMPT, "--steps", "1", "--api-key", key["api_key"])
    assert calotype(system, *arguments).returncode == 0
    listed = json.loads(calotype(system, "keys", "list", "--json").stdout)
    assert key["id"] in [entry["id"] for entry in listed]
    assert key["api_key"] not in json.dumps(listed)
    assert calotype(system, "keys", "revoke", key["id"]).returncode == 0
    # The web may remember a key for as long as its cache says: five seconds.
    system.wait_until(lambda: calotype(system, *arguments).returncode == 1, 30, "it is refused")


def test_a_rotated_key_is_replaced_and_ends(system: System) -> None:
    old = json.loads(calotype(system, "keys", "create", "rotated", "--account", "cli", "--json").stdout)
    new = json.loads(calotype(system, "keys", "rotate", old["id"], "--json").stdout)
    assert new["old"] == {"id": old["id"], "state": "revoked"}
    assert new["account_id"] == old["account_id"]
    assert calotype(system, "jobs", "--api-key", new["api_key"]).returncode == 0
    answer = calotype(system, "jobs", "--api-key", old["api_key"])
    assert (answer.returncode, "401" in answer.stderr) == (1, True)
    assert calotype(system, "keys", "rotate", old["id"]).returncode == 1


def test_watch_follows_a_job_to_its_end_and_its_exit_code_is_how_it_ended(system: System) -> None:
    good = json.loads(calotype(system, "submit", PROMPT, "--steps", "4", "--json").stdout)["id"]
    answer = calotype(system, "watch", good)
    assert (answer.returncode, answer.stdout) == (0, f"{good} succeeded\n")
    # Far longer than a heartbeat, with which its worker learns of the end.
    shape = {"width": 192, "height": 192, "num_inference_steps": 150, "num_images": 4}
    long = system.api.submit({"prompt": PROMPT, **shape})["id"]
    canceled = calotype(system, "cancel", long)
    assert canceled.returncode == 0, canceled.stderr
    answer = calotype(system, "watch", long, "--json")
    assert (answer.returncode, json.loads(answer.stdout)["state"]) == (1, "canceled")
    assert f"{long} is canceled" in answer.stderr
    again = calotype(system, "cancel", long)
    assert (again.returncode, "409" in again.stderr) == (1, True)


def test_a_batch_is_watched_shown_and_canceled_like_a_job(system: System, tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,num_inference_steps\n" + f"{PROMPT},100\n" * 30)
    batch = json.loads(calotype(system, "csv", str(path), "--json").stdout)["id"]
    assert calotype(system, "get", batch).stdout.startswith(f"{batch} running, 30 jobs: ")
    assert calotype(system, "cancel", batch).returncode == 0
    answer = calotype(system, "watch", batch, "--json")
    ended = json.loads(answer.stdout)
    assert ended["state"] != "running"
    assert answer.returncode == (0 if ended["state"] == "succeeded" else 1)
    canceled = calotype(system, "jobs", "--batch", batch, "--state", "canceled", "-n", "5").stdout
    assert len(canceled.splitlines()) == 1 + 5


def test_status_names_every_process_and_no_secret(system: System) -> None:
    answer = calotype(system, "status", "--json")
    found = json.loads(answer.stdout)
    ready = system.ready
    assert (answer.returncode, found["state"], found["problem"]) == (0, "running", None)
    assert [one["pid"] for one in found["workers"]] == [one["pid"] for one in ready["workers"]]
    assert [one["tiers"] for one in found["workers"]] == [["sd"], ["sd", "hd"]]
    assert all(one["determinism"] for one in found["workers"])
    assert [tier["name"] for tier in found["tiers"]] == ["sd", "hd"]
    shown = answer.stdout + calotype(system, "status").stdout
    secrets = [ready["api_key"], ready["flower_auth"].partition(":")[2], ready["s3_secret_key"]]
    assert not [secret for secret in secrets if secret in shown]


def test_config_check_connects_to_everything_and_names_what_does_not_answer(system: System) -> None:
    without_url = {"CALOTYPE_DATABASE_URL": ""}
    good = calotype(system, "config", "check", "--json")
    assert good.returncode == 0, good.stdout
    names = [part["name"] for part in json.loads(good.stdout)]
    assert names[:4] == ["calotype.toml", "postgres", "broker", "s3"]
    # S35: the keys of each role can do what they must, and nothing beyond.
    assert {f"postgres for {role}" for role in DATABASE_ROLES} <= set(names)
    assert {f"broker for {role}" for role in ROLES} <= set(names)
    assert {f"s3 for {role}" for role in S3_ROLES} <= set(names)
    bad = calotype(system, "config", "check", **without_url, CALOTYPE_BROKER_URL="redis://127.0.0.1:9/0")
    states = [line.split()[:2] for line in bad.stdout.splitlines()]
    assert bad.returncode == 3
    assert states[1:4] == [["FAIL", "postgres:"], ["FAIL", "broker:"], ["ok", "s3:"]]


def test_the_doctor_sees_what_runs_and_finds_nothing_wrong_with_it(system: System) -> None:
    found = {part["name"]: part for part in json.loads(calotype(system, "doctor", "--json").stdout)}
    assert [name for name, part in found.items() if part["state"] == "FAIL"] == []
    assert str(os.getpid()) in found["ports"]["found"]
    assert found["clock"]["found"] == "agrees with the database's"


def test_openapi_is_what_the_running_api_serves(system: System) -> None:
    served = httpx2.get(f"{system.ready['url']}/openapi.json", trust_env=False).json()
    assert served.pop("servers") == [{"url": system.ready["url"]}]  # which a document on disk cannot know
    assert json.loads(calotype(system, "openapi").stdout) == served


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("submit", "a", "--steps", "0"), 1, "num_inference_steps"),
        (("submit", "a", "-o", "/no/such/folder/a.png"), 2, "/no/such/folder"),
        (("submit", "a", "--url", "http://127.0.0.1:9"), 3, "127.0.0.1:9"),
        (("csv", "no-such.csv"), 2, "no-such.csv"),
        (("get", "job_nobody"), 1, "404"),
        (("up", "--port", "99999"), 2, "65535"),
        (("up", "--ready-file", "/no/such/folder/r.json"), 2, "/no/such/folder"),
    ],
)
def test_a_failure_is_one_clear_line_and_its_exit_code(
    system: System, arguments: tuple[str, ...], code: int, says: str
) -> None:
    answer = calotype(system, *arguments)
    assert answer.returncode == code
    assert says in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_demo_fails_when_the_service_refuses_its_work(system: System, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("prompt,width\na red heart,100000\n")
    with pytest.raises(ApiError, match="width"):
        run_demo(system.ready, path, tmp_path / "out", Console(quiet=True))


def tier(system: System, name: str) -> dict[str, Any]:
    return next(dict(one.raw) for one in system.api.client.tiers() if one.name == name)


def state_of(system: System, job_id: str) -> str:
    return str(system.api.job(job_id)["state"])


def test_drained_workers_take_no_job_until_they_are_resumed(system: System) -> None:
    ids = [one["id"] for one in json.loads(calotype(system, "workers", "list", "--json").stdout)]
    assert len(ids) == 2
    drained = calotype(system, "workers", "drain", "--all", "--wait", "60", "--json")
    assert drained.returncode == 0, drained.stderr
    assert {one["state"] for one in json.loads(drained.stdout)} == {"drained"}
    try:
        know = "SELECT count(*) AS num FROM workers WHERE seen_at > drain_requested_at AND stopped_at IS NULL"
        system.wait_until(lambda: system.rows(know)[0].num == len(ids), 60, "the workers know")
        assert tier(system, "sd")["num_live_workers"] == 0
        job_id = json.loads(calotype(system, "submit", PROMPT, "--steps", "1", "--json").stdout)["id"]
        job = system.api.job(job_id)
        assert (job["state"], job["waiting_reason"]["code"]) == ("queued", "no_live_worker")
    finally:
        assert calotype(system, "workers", "resume", "--all").returncode == 0
    system.wait_until(lambda: state_of(system, job_id) == "succeeded", 60, "it is drawn")
    refused = calotype(system, "workers", "drain", "nowhere")
    assert (refused.returncode, ids[0] in refused.stderr) == (1, True)


def test_a_paused_tier_accepts_jobs_and_starts_none_until_it_is_resumed(system: System) -> None:
    paused = calotype(system, "tiers", "pause", "hd", "--reason", "new weights")
    assert (paused.returncode, paused.stdout) == (0, "hd is paused\n")
    try:
        know = """SELECT count(*) AS num FROM workers, paused_tiers
                   WHERE seen_at > paused_at AND stopped_at IS NULL AND tiers ? tier"""
        system.wait_until(lambda: system.rows(know)[0].num, 60, "its worker knows")
        asked = ("submit", PROMPT, "--steps", "1", "--json")
        waits = json.loads(calotype(system, *asked, "--width", "192", "--height", "192").stdout)["id"]
        drawn = json.loads(calotype(system, *asked).stdout)["id"]
        system.wait_until(lambda: state_of(system, drawn) == "succeeded", 60, "the other tier is served")
        job = system.api.job(waits)
        assert (job["state"], job["waiting_reason"]["code"]) == ("queued", "tier_paused")
        assert "new weights" in job["waiting_reason"]["detail"]
        shown = tier(system, "hd")
        assert (shown["can_serve"], shown["paused"]["reason"]) == (False, "new weights")
    finally:
        assert calotype(system, "tiers", "resume", "hd").returncode == 0
    system.wait_until(lambda: state_of(system, waits) == "succeeded", 60, "it is drawn")
    unknown = calotype(system, "tiers", "pause", "uhd")
    assert (unknown.returncode, "there is: sd, hd" in unknown.stderr) == (2, True)


def test_erase_removes_a_job_and_its_images(system: System, tmp_path: Path) -> None:
    path = tmp_path / "heart.png"
    drawn = calotype(system, "submit", PROMPT, "--steps", "1", "-o", str(path), "--json")
    job = json.loads(drawn.stdout)
    link = job["images"][0]["url"]
    assert calotype(system, "erase", job["id"], "--images").returncode == 0
    assert calotype(system, "get", job["id"], "-o", str(path)).returncode == 1
    erased = calotype(system, "erase", job["id"])
    assert (erased.returncode, erased.stdout) == (0, f"{job['id']} is erased\n")
    assert calotype(system, "get", job["id"]).returncode == 1
    system.wait_until(
        lambda: httpx2.get(link, trust_env=False).status_code == 404, 60, "its object is deleted"
    )


def test_backup_copies_a_running_installation(system: System, tmp_path: Path) -> None:
    assert calotype(system, "submit", PROMPT, "--steps", "1", "-o", str(tmp_path / "a.png")).returncode == 0
    in_its_folder = {"CALOTYPE_DATABASE_URL": "", "CALOTYPE_S3_ENDPOINT": ""}
    made = calotype(system, "backup", str(tmp_path / "backup"), "--json", **in_its_folder)
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    files = [path for path in (tmp_path / "backup" / "objects").rglob("*") if path.is_file()]
    assert document["num_objects"] == len(files) >= 1
    mixed = calotype(system, "backup", str(tmp_path / "backup"), CALOTYPE_S3_ENDPOINT="")
    assert (mixed.returncode, "or neither" in mixed.stderr) == (1, True)
    refused = calotype(system, "restore", str(tmp_path / "backup"), **in_its_folder)
    assert (refused.returncode, "would be lost" in refused.stderr) == (1, True)
