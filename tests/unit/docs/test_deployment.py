"""Every name in a deployment file exists in the code, and a name that does not exist is noticed."""

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from local.roles import ROLES
from local.valkey import KEY_PREFIX
from settings import ROOT, Settings, load_settings
from storage.roles import ROLES as DATABASE_ROLES
from tasks.app import make_celery
from tasks.in_flight import LET_GO_SECONDS
from tasks.pings import Pings
from tasks.queues import CPU_QUEUE
from tasks.webhooks.worker import DEVICE

from .deployment_checks import problems
from .deployment_files import FILES, Deployment, mounted

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()

COMPOSE, UNITS = "docker-compose.yml", "deploy/systemd/"
# One mistake for each check: the file, the text that is replaced, its replacement, and the expected message.
CHANGES = [
    ("Procfile", "-m alembic", "-m alembik", "no module alembik"),
    ("Procfile", "cli api", "cli apis", "no command calotype apis"),
    ("Procfile", "tasks.flower:celery", "tasks.flower:celeri", "no application tasks.flower:celeri"),
    ("Procfile", "cpu:0", "cpu0", "no device cpu0"),
    ("Procfile", "--device cpu:0", "", "--device is required"),
    ("Procfile", "upgrade head", "upgrade heads", "alembic runs"),
    ("Procfile", "${PORT:-8000}", "${WEBPORT:-8000}", "nothing sets WEBPORT"),
    ("Procfile", "PORT:-8000", "PORT:-8001", "not {PORT:-8000}"),
    (COMPOSE, "--alive-file", "--alive-path", "no option --alive-path"),
    (COMPOSE, "test -n", "tset -n", "no program tset"),
    (COMPOSE, "CALOTYPE_LOG_LEVEL:", "CALOTYPE_LOGLEVEL:", "no process reads CALOTYPE_LOGLEVEL"),
    (COMPOSE, "calotype_broker_url_api:", "calotype_broker_uri_api:", "no secret calotype_broker_url_api"),
    (COMPOSE, "WORKER_MEMORY:-8g", "WORKER_MEMORY:-4g", ".env.example offers"),
    (COMPOSE, "${WORKER_MEMORY:-8g}", "${WORKER_MEMORY}", "no default for"),
    (COMPOSE, "127.0.0.1:8000:8000", "127.0.0.1:8000:8080", "api listens on 8000"),
    (COMPOSE, "127.0.0.1:5555/health", "127.0.0.1:5556/health", "flower's health check"),
    (COMPOSE, "-s3.port=8333", "-s3.port=8334", "S3 listens on 8334"),
    (COMPOSE, "test, -s, /tmp/ready.json", "test, -s, /tmp/up.json", "/tmp/up.json is read"),
    (COMPOSE, "/run/secrets/valkey.conf", "/run/secrets/redis.conf", "reads /run/secrets/redis.conf"),
    (COMPOSE, "./models:/app/models", "./weights:/app/weights", "mounts ./weights"),
    (COMPOSE, "./secrets/flower_password", "./secret/flower_password", "secret flower_password is"),
    ("Dockerfile", "COPY storage storage", "COPY store store", "copies store, which does not exist"),
    ("Dockerfile", "EXPOSE 8000", "EXPOSE 80", "exposes"),
    ("Dockerfile", '"--host=', '"--hots=', "no option --hots"),
    (".dockerignore", "!storage\n", "", "excludes storage"),
    (".dockerignore", "!storage\n", "!storage\n!store\n", "store does not exist"),
    ("deploy/make-secrets", "write valkey.conf", "write redis.conf", "makes no valkey.conf"),
    ("deploy/make-secrets", "@postgres:5432", "@postgres:5433", "calotype_database_url_api does not lead to"),
    (UNITS + "calotype-migrate.service", "do sleep", "do slep", "no program slep"),
    (UNITS + "calotype-api.service", "Environment=PORT=8000", "Environment=", "PORT has no default"),
    (UNITS + "calotype.target", "deploy-with-systemd", "deploy-by-systemd", "is not in the checkout"),
    (UNITS + "calotype-api.env.example", "S3_SECRET_KEY", "S3_SECRETKEY", "reads CALOTYPE_S3_SECRETKEY"),
    ("docs/howto/deploy-with-systemd.md", "env.example", "env.sample", "is not in the checkout"),
]  # fmt: skip


def make_secrets(folder: Path) -> None:
    """Run the script as in the how-to."""
    subprocess.run(["sh", str(ROOT / "deploy/make-secrets"), str(folder)], check=True, capture_output=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the deployment files that a test may change."""
    for name in FILES:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    return tmp_path


def test_every_command_port_path_and_variable_exists() -> None:
    assert problems(Deployment()) == []


@pytest.mark.parametrize(("name", "right", "wrong", "said"), CHANGES)
def test_a_name_that_does_not_exist_is_noticed(
    copy: Path, name: str, right: str, wrong: str, said: str
) -> None:
    text = (copy / name).read_text(encoding="utf-8")
    assert right in text
    (copy / name).write_text(text.replace(right, wrong), encoding="utf-8")
    found = problems(Deployment(copy))
    assert any(said in problem for problem in found), found


def test_the_procfile_names_every_process() -> None:
    procfile = Deployment().procfile
    workers = ["worker-cpu", "worker-gpu", "worker-none"]
    assert list(procfile) == ["release", "web", *workers, "sweeper", "flower"]
    devices = [re.findall(r"--device (\S+)", line) for name, line in procfile.items() if "worker" in name]
    assert devices == [["cpu:0"], ["cuda:0"], ["none"]]


def test_the_linter_accepts_the_dockerfile() -> None:
    linter = str(Path(sys.executable).with_name("hadolint"))
    answer = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


def test_secrets_are_made_once_and_only_their_owner_can_enter_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    before: dict[str, str] = {}
    for _ in range(2):
        make_secrets(folder)
        made = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
        assert made == (before or made)
        before = made
    assert folder.stat().st_mode & 0o777 == 0o700
    # Other users inside the containers read them, through mounts of the files alone.
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    passwords = [text for name, text in made.items() if re.search(r"password|_key|_secret$", name)]
    assert len(set(passwords)) == len(passwords) == 22
    assert all(re.fullmatch(r"[0-9a-f]{40}", text) for text in passwords)
    assert made["postgres_password"] in made["calotype_database_url"]
    for user in DATABASE_ROLES:
        url = made[f"calotype_database_url_{user}"]
        assert f"//{user}:{made[f'postgres_password_{user}']}@" in url
    for role in ROLES:
        assert f"user {role} on >{made[f'valkey_password_{role}']} " in made["valkey.conf"]
        assert f"//{role}:{made[f'valkey_password_{role}']}@" in made[f"calotype_broker_url_{role}"]


def test_the_settings_read_the_secrets_that_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_secrets(tmp_path / "s")
    for name in [name for name in os.environ if name.startswith("CALOTYPE_")]:
        monkeypatch.delenv(name)  # the environment comes before files
    (tmp_path / "mounted").mkdir()
    for path, source in mounted(Deployment().services["api"]).items():
        shutil.copy(tmp_path / "s" / source, tmp_path / "mounted" / Path(path).name)
    monkeypatch.setenv("CALOTYPE_SECRETS_DIR", str(tmp_path / "mounted"))
    settings = load_settings()
    settings.require("database_url", "broker_url", "s3_access_key", "s3_secret_key")
    assert settings.broker_url.get_secret_value().endswith("@valkey:6379/0")


def test_S35_the_sender_pings_itself_in_its_own_queue_and_reaches_that_of_no_other_worker() -> None:
    (line,) = re.findall(r"^user sender .*", Deployment().text("deploy/valkey.acl"), re.MULTILINE)
    patterns = [
        pattern
        for pattern in re.findall(rf"(?<= ~){KEY_PREFIX}(\S+)", line.partition("(")[0])
        if not re.match(rf"{CPU_QUEUE}\b|unacked|_kombu\.|\*\.reply\.celery\.pidbox", pattern)
    ]
    celery = make_celery("redis://127.0.0.1:1/0", KEY_PREFIX, [])
    own, another = (Pings(celery, device, "boot").queue_name for device in (DEVICE, "cpu:0"))
    assert len(patterns) == 1, "besides the queue of its work and what Celery itself needs"
    assert fnmatch(own, patterns[0])
    assert not fnmatch(another, patterns[0])


def test_no_secret_is_committed_or_enters_a_build() -> None:
    assert {"/secrets/", "/.env"} <= set((ROOT / ".gitignore").read_text(encoding="utf-8").splitlines())
    rules = [line for line in Deployment().text(".dockerignore").splitlines() if line and line[0] != "#"]
    assert rules[0] == "*", "nothing enters that is not named"
    assert not any("secret" in rule or ".env" in rule for rule in rules)


def test_the_lock_pins_and_does_nothing_else() -> None:
    assert [line for line in LOCK if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)] == []
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in LOCK]
    assert len(set(names)) == len(names)


def test_the_lock_holds_one_torch_and_leaves_the_nvidia_packages_to_pip() -> None:
    assert "torch==2.13.0" in LOCK
    assert [line for line in LOCK if re.match(r"nvidia|torchvision|torchaudio|triton|cuda", line, re.I)] == []


def test_the_web_and_flower_have_the_same_flags_everywhere() -> None:
    deployment = Deployment()
    plan = (ROOT / "local" / "plan.py").read_text(encoding="utf-8")
    functions = dict(re.findall(r"^    def (\w+)(.*?)(?=^    def |\Z)", plan, re.MULTILINE | re.DOTALL))
    flower = deployment.services["flower"]["command"][-1]
    web = " ".join(deployment.stage("api", "CMD")[-1])
    places = {
        "web": [web, functions["_web"], deployment.units["calotype-api.service"]["Service"]["ExecStart"]],
        "flower": [
            flower,
            functions["_flower"],
            deployment.units["calotype-flower.service"]["Service"]["ExecStart"],
        ],
    }
    for name, texts in places.items():
        for text in [deployment.procfile[name], *texts]:
            assert flags(text) == flags(deployment.procfile[name]), text


def flags(command: str) -> list[str]:
    """The command and its flags, without those of its address."""
    kept = r"-m\W+\w+\W+api|--(?!host|port|address)[a-z-]+"
    return sorted(re.sub(r"\W+", " ", flag) for flag in re.findall(kept, command))


def test_a_drain_is_shorter_than_what_kills_it() -> None:
    """With the time that is left for uploads, and the longest that giving jobs back may take."""
    defaults, deployment = Settings.model_fields, Deployment()
    drain = defaults["drain_seconds"].default + LET_GO_SECONDS + defaults["heartbeat_seconds"].default
    for name in ("worker-cpu", "worker-gpu", "worker-none"):
        assert int(deployment.services[name]["stop_grace_period"].removesuffix("s")) > drain
    for name in ("calotype-worker@.service", "calotype-webhooks.service"):
        assert int(deployment.units[name]["Service"]["TimeoutStopSec"]) > drain
