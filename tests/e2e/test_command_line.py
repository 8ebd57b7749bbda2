"""The promises of the command line, against the running system."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from client.api import ApiError
from local.demo import run_demo
from settings import ROOT
from tests.e2e.conftest import System

PROMPT = "a red heart on a white background"


def calotype(system: System, *arguments: str) -> "subprocess.CompletedProcess[str]":
    ready = system.ready
    environment = {
        "CALOTYPE_URL": ready["url"],
        "CALOTYPE_API_KEY": ready["api_key"],
        "CALOTYPE_DATABASE_URL": ready["database_url"],
    }
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
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
    shown = json.loads(calotype(system, "get", job["id"], "--json").stdout)
    assert shown["id"] == job["id"]


def test_csv_saves_every_image_under_its_line(system: System, tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,num_inference_steps\n" + f"{PROMPT},2\n" * 3)
    answer = calotype(system, "csv", str(path), "-o", str(tmp_path / "out"), "--json")
    assert (answer.returncode, json.loads(answer.stdout)["state"]) == (0, "succeeded")
    assert sorted(image.name for image in (tmp_path / "out").iterdir()) == [
        "00002-0.png",
        "00003-0.png",
        "00004-0.png",
    ]


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
