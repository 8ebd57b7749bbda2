"""The manifests run what the images hold, with settings that exist, each role's credentials and no rights."""

import re
from typing import Any

import pytest
import yaml

from catalogue.catalogue import load_catalogue
from local.plan import ENGINE_START_SECONDS
from local.roles import S3_ROLES
from settings import OTHER_VARIABLES, ROOT, Settings
from storage.roles import ROLES as DATABASE_ROLES
from tasks.in_flight import LET_GO_SECONDS

from .deployment_checks import check_command
from .deployment_files import Command, Deployment, in_shell
from .kubernetes_files import SECRETS, Manifests

MANIFESTS = Manifests()
PODS = MANIFESTS.pods
TIERS = [tier.name for tier in load_catalogue(ROOT / "calotype.toml").tiers]
WORKERS = [f"worker-{tier}" for tier in TIERS]
ROLE_OF = {"api": "api", "sweeper": "sweeper", "webhooks": "sender", "migrate": "owner"} | dict.fromkeys(
    WORKERS, "worker"
)
# The service of docker-compose.yml that runs the same.
SERVICE_OF = {"webhooks": "worker-none"} | dict.fromkeys(WORKERS, "worker-gpu")
COMPOSE = Deployment().services


def test_it_has_every_part_and_a_worker_for_each_tier() -> None:
    assert PODS.keys() == ROLE_OF.keys()
    assert set(MANIFESTS.of_kind("PodDisruptionBudget")) == {"api", "sweeper", *WORKERS}


def test_kustomize_applies_every_file_but_the_example_of_secrets() -> None:
    for folder in (MANIFESTS.folder, MANIFESTS.folder / "keda"):
        listed = yaml.safe_load((folder / "kustomization.yml").read_text(encoding="utf-8"))["resources"]
        files = {path.name for path in folder.glob("*.yml")} - {"kustomization.yml", SECRETS}
        assert set(listed) == files


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_confined(name: str) -> None:
    pod = PODS[name]
    assert pod.spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod.container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod.spec["automountServiceAccountToken"] is False
    assert not pod.spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert pod.container["resources"]["limits"]["memory"]
    assert "cpu" not in pod.container["resources"]["limits"], "throttled threads wait for each other"


@pytest.mark.parametrize("name", PODS)
def test_no_service_puts_variables_into_a_pod_that_would_be_read_as_settings(name: str) -> None:
    assert PODS[name].spec["enableServiceLinks"] is False


@pytest.mark.parametrize("name", PODS)
def test_a_pod_runs_what_compose_runs(name: str) -> None:
    pod, service = PODS[name], COMPOSE[SERVICE_OF.get(name, name)]
    assert pod.container["image"] == service["image"].removesuffix(":local")
    words = [word for command in in_shell(name, pod.command) for word in command.words]
    default = Deployment().stage("api", "CMD")[-1]
    theirs = [word for one in in_shell(name, service.get("command", default)) for word in one.words]
    own = {"rm", "-f", "/tmp/ready.json", "--tiers", *TIERS}
    assert {word.rpartition("/")[2] for word in words if word not in own} == {
        word.rpartition("/")[2] for word in theirs if word not in own
    }


@pytest.mark.parametrize("name", PODS)
def test_every_command_and_probe_exists(name: str) -> None:
    container = PODS[name].container
    commands = [container["command"]]
    commands += [
        probe["exec"]["command"] for key, probe in container.items() if "Probe" in key and "exec" in probe
    ]
    for words in commands:
        for command in in_shell(name, words):
            if command.words[0] != "rm":
                assert list(check_command(Command(name, command.words))) == []


@pytest.mark.parametrize("name", PODS)
def test_what_is_mounted_is_a_volume_of_the_pod_and_written_paths_are_mounted(name: str) -> None:
    pod = PODS[name]
    volumes = {volume["name"] for volume in pod.spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
    assert set(mounts.values()) == volumes
    assert {"/tmp", "/app/calotype.toml", "/etc/calotype/secrets"} <= mounts.keys()
    if name in WORKERS:
        (folders,) = Deployment().stage("worker", "ENV")[-1:]
        assert {word.partition("=")[2] for word in folders} <= mounts.keys()


def test_the_settings_exist_and_secrets_are_not_among_them() -> None:
    data = MANIFESTS.of_kind("ConfigMap")["calotype-settings"]["data"]
    known = {f"CALOTYPE_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    assert data.keys() <= known
    assert all(isinstance(value, str) for value in data.values())
    assert not any(re.search(r"_(URL|KEY)$", name) for name in data.keys() - {"CALOTYPE_PUBLIC_URL"})
    for pod in PODS.values():
        assert pod.container["envFrom"] == [{"configMapRef": {"name": "calotype-settings"}}]
        assert "env" not in pod.container
        mounts = {mount["name"]: mount["mountPath"] for mount in pod.container["volumeMounts"]}
        assert mounts["secrets"] == data["CALOTYPE_SECRETS_DIR"]


def test_S35_a_pod_has_the_credentials_of_its_role_and_no_others() -> None:
    secrets = MANIFESTS.of_kind("Secret")
    for name, pod in PODS.items():
        role = ROLE_OF[name]
        assert pod.secrets == [f"calotype-{role}"]
        wanted = {"calotype_database_url"}
        if role != "owner":
            assert role in DATABASE_ROLES
            wanted |= {"calotype_broker_url"}
        if role in S3_ROLES:
            wanted |= {"calotype_s3_access_key", "calotype_s3_secret_key"}
        assert secrets[f"calotype-{role}"]["stringData"].keys() == wanted
    (users,) = [volume for volume in PODS["migrate"].spec["volumes"] if volume["name"] == "users"]
    named = {one["secret"]["name"]: one["secret"]["items"] for one in users["projected"]["sources"]}
    for role in DATABASE_ROLES:
        assert named[f"calotype-{role}"] == [{"key": "calotype_database_url", "path": f"{role}_url"}]
        assert f"--{role} /etc/calotype/users/{role}_url" in PODS["migrate"].command[-1]
    assert len(named) == len(DATABASE_ROLES)


def test_the_secrets_that_are_filled_in_are_not_committed() -> None:
    rules = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "/secrets/" in rules
    assert "secrets/kubernetes.yml" in (ROOT / "docs/howto/autoscale-workers.md").read_text(encoding="utf-8")
    data = [one["stringData"] for one in MANIFESTS.of_kind("Secret").values()]
    for value in [value for one in data for value in one.values()]:
        assert re.search(r"PASSWORD|^ACCESS$|^SECRET$", value)


def test_a_drain_and_a_start_have_their_time() -> None:
    settings = {name: field.default for name, field in Settings.model_fields.items()}
    for name in (*WORKERS, "webhooks"):
        end = settings["drain_seconds"] + LET_GO_SECONDS + settings["heartbeat_seconds"]
        assert PODS[name].spec["terminationGracePeriodSeconds"] > end
    for name in WORKERS:
        probe = PODS[name].container["startupProbe"]
        seconds = probe["periodSeconds"] * probe["failureThreshold"]
        assert seconds == ENGINE_START_SECONDS + settings["self_test_seconds"]
    api = PODS["api"]
    pause = api.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert api.spec["terminationGracePeriodSeconds"] > pause + 10


def test_a_restarted_container_does_not_find_the_ready_file_of_the_one_before() -> None:
    for name in (*WORKERS, "webhooks"):
        assert PODS[name].command[-1].startswith("rm -f /tmp/ready.json; exec ")


def test_selectors_find_the_pods_and_ports_are_those_that_processes_listen_on() -> None:
    for name, one in MANIFESTS.of_kind("Deployment").items():
        assert one["spec"]["selector"]["matchLabels"] == PODS[name].labels
    assert len({tuple(pod.labels.items()) for pod in PODS.values()}) == len(PODS)
    for name, budget in MANIFESTS.of_kind("PodDisruptionBudget").items():
        assert budget["spec"]["selector"]["matchLabels"] == PODS[name].labels
    (service,) = MANIFESTS.of_kind("Service").values()
    assert service["spec"]["selector"] == PODS["api"].labels
    ports = {port["name"]: port["containerPort"] for port in PODS["api"].container["ports"]}
    assert Deployment().stage("api", "EXPOSE") == [["8000"]]
    assert ports["http"] == 8000
    data = MANIFESTS.of_kind("ConfigMap")["calotype-settings"]["data"]
    for name, pod in PODS.items():
        if name != "migrate":
            found = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
            assert str(found["metrics"]) == data["CALOTYPE_METRICS_PORT"]
            annotations = MANIFESTS.of_kind("Deployment")[name]["spec"]["template"]["metadata"]["annotations"]
            assert annotations["prometheus.io/port"] == str(found["metrics"])


def test_workers_of_two_tiers_differ_only_in_the_tier() -> None:
    first, *others = TIERS
    for folder in (MANIFESTS.folder, MANIFESTS.folder / "keda"):
        text = (folder / f"worker-{first}.yml").read_text(encoding="utf-8")
        for tier in others:
            other = (folder / f"worker-{tier}.yml").read_text(encoding="utf-8")
            assert re.sub(rf"\b{first}\b", tier, text) == other


def test_a_worker_has_one_gpu_and_the_autoscaler_alone_says_how_many_there_are() -> None:
    scaled = MANIFESTS.of_kind("ScaledObject")
    assert scaled.keys() == set(WORKERS)
    for name in WORKERS:
        assert PODS[name].container["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert "cuda:0" in PODS[name].command[-1]
        assert "replicas" not in MANIFESTS.of_kind("Deployment")[name]["spec"]
        assert scaled[name]["spec"]["scaleTargetRef"] == {"name": name}


@pytest.mark.parametrize("tier", TIERS)
def test_the_triggers_read_the_work_of_their_tier_once_however_many_processes_tell_it(tier: str) -> None:
    triggers = MANIFESTS.of_kind("ScaledObject")[f"worker-{tier}"]["spec"]["triggers"]
    queries = {one["name"]: one["metadata"]["query"] for one in triggers}
    for lane in ("interactive", "bulk"):
        assert queries[f"{lane}-work"] == " + ".join(
            f'max(calotype_{state}_device_seconds{{tier="{tier}",lane="{lane}"}})'
            for state in ("queued", "running")
        )
    assert (
        queries["drawn-images"]
        == f'sum(rate(calotype_images_total{{tier="{tier}",lane="interactive"}}[10m]))'
    )
    queued = f'sum(max by (lane) (calotype_queue_jobs{{tier="{tier}"}}))'
    assert queries["queued-jobs"] == f'{queued} + (sum(calotype_held_jobs{{pod_tier="{tier}"}}) or vector(0))'


def test_the_scrape_configuration_gives_the_metrics_of_a_worker_the_tier_of_its_pod() -> None:
    """The last worker of a tier without a profile is kept by the jobs that it holds, which have no tier."""
    text = (ROOT / "docs/howto/autoscale-workers.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", text, re.DOTALL)
    [job] = yaml.safe_load(found)["scrape_configs"]
    [label] = [one for one in job["relabel_configs"] if one.get("target_label") == "pod_tier"]
    assert label["source_labels"] == ["__meta_kubernetes_pod_label_calotype_tier"]
    for tier in TIERS:
        assert PODS[f"worker-{tier}"].labels["calotype/tier"] == tier


def test_the_last_worker_is_not_removed_while_the_api_or_prometheus_is_away() -> None:
    for one in MANIFESTS.of_kind("ScaledObject").values():
        triggers: dict[str, Any] = {each["name"]: each["metadata"] for each in one["spec"]["triggers"]}
        assert triggers["queued-jobs"]["ignoreNullValues"] == "false"
        assert one["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
