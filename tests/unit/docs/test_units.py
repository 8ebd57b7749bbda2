"""The systemd units pass `systemd-analyze verify`, and all are confined alike."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local.roles import S3_ROLES
from settings import ROOT

from .deployment_files import HOME, Deployment

FOLDER = ROOT / "deploy" / "systemd"
UNITS = Deployment().units
SERVICES = {name: unit for name, unit in UNITS.items() if name.endswith(".service")}
SHARED = UNITS["all.conf"]
LONG = {name: unit for name, unit in SERVICES.items() if name != "calotype-migrate.service"}
ANALYZE = shutil.which("systemd-analyze")
# In CI these tests must not be skipped: without the program they fail there.
needs_systemd = pytest.mark.skipif(
    ANALYZE is None and not os.environ.get("CI"),
    reason="this machine has no systemd-analyze: install Debian's package 'systemd'",
)


def verify(folder: Path) -> str:
    """The output of `systemd-analyze verify` for the units in a folder, with a Python that exists here."""
    for path in folder.glob("*.service"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"{HOME}/.venv/bin/python", sys.executable), encoding="utf-8")
    names = [path.name for path in folder.iterdir() if path.suffix in (".service", ".target")]
    answer = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        # The closing colon adds the system's own units: sysinit.target and its like.
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    ours = [line for line in answer.stderr.splitlines() if "calotype" in line or answer.returncode]
    return "\n".join(ours)


@needs_systemd
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "units")
    assert verify(tmp_path / "units") == ""


@needs_systemd
@pytest.mark.parametrize(
    ("name", "right", "wrong", "said"),
    [
        ("calotype-api.service", "TimeoutStopSec", "TimeoutStopSecs", "TimeoutStopSecs"),
        ("calotype-sweeper.service", "/bin/python", "/bin/pyton", "pyton"),
    ],
)
def test_systemd_notices_a_mistake(tmp_path: Path, name: str, right: str, wrong: str, said: str) -> None:
    shutil.copytree(FOLDER, tmp_path / "units")
    path = tmp_path / "units" / name
    text = path.read_text(encoding="utf-8")
    assert right in text
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    assert said in verify(tmp_path / "units")


def test_there_is_a_unit_for_every_process_of_the_procfile() -> None:
    units = {
        "release": "migrate",
        "web": "api",
        "worker-none": "webhooks",
        "sweeper": "sweeper",
        "flower": "flower",
    }
    units |= {"worker-cpu": "worker@", "worker-gpu": "worker@"}
    procfile = Deployment().procfile
    assert units.keys() == procfile.keys()
    assert SERVICES.keys() == {f"calotype-{name}.service" for name in units.values()}
    for process, name in units.items():
        line = (
            SERVICES[f"calotype-{name}.service"]["Service"]["ExecStart"]
            .partition(" -m ")[2]
            .partition(";")[0]
        )
        device = re.search(r"--device (\S+)", procfile[process])
        said = procfile[process].replace("'", "").partition(" -m ")[2]
        assert line.replace("%i", device[1] if device else "") == re.sub(r":-\d+\}", "}", said)


def test_every_service_is_confined_and_no_unit_loosens_it() -> None:
    confined = {
        "DynamicUser": "yes", "NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "ProtectHome": "yes",
        "ProtectSystem": "strict", "PrivateTmp": "yes", "RestrictNamespaces": "yes",
    }  # fmt: skip
    assert confined.items() <= dict(SHARED["Service"]).items()
    for name, unit in SERVICES.items():
        added = {"Environment", "EnvironmentFile"}
        assert not unit["Service"].keys() & SHARED["Service"].keys() - added, name
        is_worker = name == "calotype-worker@.service"
        for device_hiding in ("PrivateDevices", "ProtectClock"):
            assert (device_hiding in unit["Service"]) == (not is_worker), "a worker must see its GPU"
        assert ("MemoryMax" in unit["Service"]) == (not is_worker), "its model decides"


def test_S35_a_unit_reads_the_credentials_of_its_role_alone_and_each_file_has_an_example() -> None:
    roles = {name: name for name in ("api", "sweeper", "flower")}
    roles |= {"worker@": "worker", "webhooks": "sender", "migrate": "owner"}
    for name, role in roles.items():
        unit = SERVICES[f"calotype-{name}.service"]
        assert unit["Service"]["EnvironmentFile"] == f"-/etc/calotype/calotype-{role}.env", name
        example = Deployment().variables_of(f"deploy/systemd/calotype-{role}.env.example")
        assert ("CALOTYPE_S3_SECRET_KEY" in example) == (role in S3_ROLES), role
        assert ("CALOTYPE_DATABASE_URL" in example) == (role != "flower"), role
    shared = Deployment().variables_of("deploy/systemd/calotype.env.example")
    assert not [name for name in shared if any(word in name for word in ("KEY", "SECRET", "AUTH"))]
    assert not shared.keys() & {"CALOTYPE_DATABASE_URL", "CALOTYPE_BROKER_URL"}


def test_every_worker_keeps_what_its_device_works_on_and_what_its_self_test_found() -> None:
    worker = SERVICES["calotype-worker@.service"]["Service"]
    given = dict(word.split("=", 1) for word in worker["Environment"].split())
    # Under ProtectSystem=strict a service writes in its own folders alone.
    assert given == {
        "CALOTYPE_RUN_DIR": f"%t/{worker['RuntimeDirectory']}",
        "CALOTYPE_PROFILES_DIR": f"%S/{worker['StateDirectory']}/profiles",
    }
    assert worker["RuntimeDirectoryPreserve"] == "yes", "it outlives the worker, as the state does"
    page = Deployment().text("docs/howto/deploy-with-systemd.md")
    assert f"CALOTYPE_PROFILES_DIR=/var/lib/{worker['StateDirectory']}/profiles" in page, "`calotype profile`"
    for process in ("worker-cpu", "worker-gpu"):
        assert re.match(r"CALOTYPE_RUN_DIR=\S+ ", Deployment().procfile[process]), process


def test_what_ends_is_started_again_and_belongs_to_the_target() -> None:
    assert SHARED["Unit"]["StartLimitIntervalSec"] == "0", "for ever"
    assert SHARED["Unit"]["PartOf"] == "calotype.target"
    for name, unit in LONG.items():
        assert unit["Service"]["Restart"] == "always", name
        assert unit["Install"]["WantedBy"] == "calotype.target", name
        if name != "calotype-flower.service":
            assert unit["Unit"]["Requires"] == unit["Unit"]["After"] == "calotype-migrate.service", name


def test_what_needs_the_schema_waits_for_it_however_often_it_fails() -> None:
    # A failed start job fails all that wait for it, for good; so this one must not end before it succeeds.
    migrate = SERVICES["calotype-migrate.service"]["Service"]
    assert (migrate["Type"], migrate["RemainAfterExit"], migrate["TimeoutStartSec"]) == (
        "oneshot",
        "yes",
        "infinity",
    )
    assert "Restart" not in migrate


def test_the_migration_is_tried_until_it_succeeds(tmp_path: Path) -> None:
    line = SERVICES["calotype-migrate.service"]["Service"]["ExecStart"]
    # A python that fails twice, and a pause that is none.
    for name, body in (("python", 'echo try >> tries; test "$(wc -l < tries)" -ge 3'), ("sleep", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    command = shlex.split(line.replace(f"{HOME}/.venv/bin/python", str(tmp_path / "python")))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    assert len((tmp_path / "tries").read_text(encoding="utf-8").splitlines()) == 3


@needs_systemd
def test_a_device_is_written_in_a_units_name_as_it_is() -> None:
    for device in ("cuda:0", "cpu:1"):
        command = ["systemd-escape", "--template=calotype-worker@.service", device]
        escaped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert escaped.stdout.strip() == f"calotype-worker@{device}.service"
