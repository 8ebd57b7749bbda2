"""Procfile, docker-compose.yml, Dockerfile and the lock: structure, commands and names that exist."""

import importlib.util
import re
import shlex
from typing import Any

import pytest
import typer.main
import yaml

from cli import app
from settings import ROOT, Settings, load_catalogue

SETTINGS = {f"CALOTYPE_{name.upper()}" for name in Settings.model_fields}
COMMANDS = getattr(typer.main.get_command(app), "commands", {})
PROCFILE = dict(
    re.findall(r"^([A-Za-z0-9_-]+):\s*(.+)$", (ROOT / "Procfile").read_text(encoding="utf-8"), re.MULTILINE)
)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()


def _check_command(command: list[str]) -> None:
    """A `python -m MODULE ...` whose module, subcommand, options and application exist."""
    assert command[:2] == ["python", "-m"], command
    module, *arguments = command[2:]
    assert importlib.util.find_spec(module), module
    if module == "cli":
        subcommand = COMMANDS[arguments[0]]
        known = {option for part in subcommand.params for option in part.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= known
        assert all(part.required <= (part.opts[0] in arguments) for part in subcommand.params)
    for target in arguments:
        if match := re.fullmatch(r"([a-z]+\.[a-z]+):(\w+)(\(\))?", target):
            path = ROOT / (match[1].replace(".", "/") + ".py")
            assert re.search(rf"\b{match[2]}\b", path.read_text(encoding="utf-8")), target


def _variables(text: str) -> set[str]:
    return set(re.findall(r"\$\{(\w+)", text))


def test_the_procfile_names_every_process() -> None:
    assert {"release", "web", "sweep", "flower"} <= PROCFILE.keys()
    devices = re.findall(r"worker --device (\S+)", " ".join(PROCFILE.values()))
    assert {device.partition(":")[0] for device in devices} == {"cpu", "cuda"}


@pytest.mark.parametrize("name", PROCFILE)
def test_a_line_of_the_procfile_can_be_run(name: str) -> None:
    line = PROCFILE[name]
    _check_command(shlex.split(line))
    assert _variables(line) <= SETTINGS | {"PORT", "FLOWER_PORT"}


def test_compose_has_every_part() -> None:
    data = {"postgres", "valkey", "seaweedfs"}
    ours = {"migrate", "api", "worker-cpu", "worker-gpu", "sweeper", "flower"}
    assert SERVICES.keys() == data | ours
    assert OURS.keys() == ours


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_runs_a_command_that_exists(name: str) -> None:
    service = OURS[name]
    target = service["build"]["target"]
    assert re.search(rf"^FROM base AS {target}$", DOCKERFILE, re.MULTILINE)
    if "command" in service:
        _check_command(service["command"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_is_given_known_settings_and_all_that_are_required(name: str) -> None:
    given = {key for key in OURS[name]["environment"] if key.startswith("CALOTYPE_")}
    assert given <= SETTINGS
    assert {
        f"CALOTYPE_{key}" for key in ("DATABASE_URL", "BROKER_URL", "S3_ENDPOINT", "S3_SECRET_KEY")
    } <= given


def test_compose_holds_no_secret_and_starts_without_none() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    used = re.findall(r"\$\{(\w*(?:PASSWORD|KEY|SECRET)\w*)([^}]*)\}", text)
    assert {name for name, _ in used} >= {"POSTGRES_PASSWORD", "VALKEY_PASSWORD", "S3_SECRET_KEY"}
    assert {rule for _, rule in used} == {":?"}
    # The recipe in its head makes every one of them.
    made = set(re.findall(r"\b[A-Z0-9]+_[A-Z_]+\b", text.partition("do echo")[0]))
    assert made == {name for name, _ in used}


def test_no_internal_port_is_published() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"api", "seaweedfs", "flower"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert COMPOSE["networks"]["data"] == {"internal": True}
    for name, service in SERVICES.items():
        assert ("edge" in service["networks"]) == (name in published), name


def test_every_service_that_can_be_asked_has_a_health_check() -> None:
    silent = {name for name, service in SERVICES.items() if "healthcheck" not in service}
    assert silent == {"migrate", "sweeper"}


def test_what_a_service_waits_for_exists_and_can_come_true() -> None:
    for name, service in SERVICES.items():
        for other, wish in service.get("depends_on", {}).items():
            if wish["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], name
            else:
                assert wish["condition"] == "service_completed_successfully"
                assert SERVICES[other]["restart"] != "unless-stopped", name


def test_volumes_networks_and_configs_are_declared() -> None:
    for service in SERVICES.values():
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= COMPOSE[
            "volumes"
        ].keys()
        assert set(service["networks"]) <= COMPOSE["networks"].keys()
        assert {entry["source"] for entry in service.get("configs", [])} <= COMPOSE["configs"].keys()


def test_the_gpu_worker_reserves_a_gpu_and_starts_only_when_asked() -> None:
    worker = SERVICES["worker-gpu"]
    assert worker["profiles"] == ["gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "cuda:0" in worker["command"]


def test_a_worker_has_time_to_drain() -> None:
    seconds = int(SERVICES["worker-cpu"]["stop_grace_period"].removesuffix("s"))
    assert seconds > Settings.model_fields["drain_seconds"].default


def test_the_images_run_without_root_and_hold_what_they_run() -> None:
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    for target in ("api", "worker"):
        assert "\nUSER calotype\n" in stages[target]
        sources = [
            word for line in re.findall(r"^COPY (.+)$", stages[target], re.M) for word in line.split()[:-1]
        ]
        assert [source for source in sources if not (ROOT / source).exists()] == []
    assert not re.search(r"^COPY engine|-r requirements\.lock", stages["api"], re.MULTILINE)
    catalogue = load_catalogue(ROOT / "calotype.toml")
    for model in catalogue.models:
        assert f"COPY {model.path} " in stages["worker"]


def test_the_lock_pins_and_does_nothing_else() -> None:
    assert [line for line in LOCK if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)] == []
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in LOCK]
    assert len(set(names)) == len(names)


def test_the_lock_holds_one_torch_and_leaves_the_nvidia_packages_to_pip() -> None:
    assert "torch==2.13.0" in LOCK
    assert [line for line in LOCK if re.match(r"nvidia|torchvision|torchaudio|triton|cuda", line, re.I)] == []
