"""The programs that `calotype up` runs: their environments and their readiness checks."""

import base64
import http.client
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from catalogue.catalogue import Catalogue
from local.devices import Device, find_devices, select_devices
from local.endpoints import Endpoints, base_environment
from local.errors import LocalError
from local.ports import LOOPBACK
from local.process import tail
from local.roles import Role
from local.standby import ImportGroup, Standbys
from local.state import State
from local.supervisor import Service
from settings import ROOT, Settings

_PYTHON = sys.executable
ENGINE_START_SECONDS = 600
"""The time to load a large model from a slow disk, without its self-test."""
_IMPORTS: Mapping[str, tuple[str, ...]] = {
    "web": ("web.serve",),
    "webhooks": ("tasks.webhooks.worker",),
    "sweep": (),
    "flower": ("flower.command",),
}
"""What the services without torch import beyond `_SHARED_IMPORTS`."""
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|_URL$")
"""Names of variables that may hold a secret: a process gets them from its pipe, with its service."""
_SHARED_IMPORTS = ("tasks.sweeper", "celery.__main__", "cli.__main__")


@dataclass(frozen=True)
class WorkerPost:
    """One worker to run: its device, its tiers and its ready file."""

    name: str
    device: Device
    tiers: tuple[str, ...]
    report_file: Path

    def clear(self) -> None:
        """Remove the ready file of an earlier process."""
        self.report_file.unlink(missing_ok=True)

    def report(self) -> dict[str, object] | None:
        """Return the ready file's content, which the worker writes once its engine is loaded; else None."""
        try:
            document = json.loads(self.report_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None


def worker_posts(catalogue: Catalogue, run_folder: Path) -> list[WorkerPost]:
    """Return one post for each device of each `[[workers]]` entry."""
    devices = find_devices()
    posts: list[WorkerPost] = []
    for plan in catalogue.workers:
        selected = select_devices(plan.device, devices)
        if not selected:
            there = ", ".join(device.name for device in devices)
            raise LocalError(f"[[workers]] names the device {plan.device!r}; this machine has: {there}")
        for device in selected:
            name = "worker-" + device.name.replace(":", "")
            twins = sum(post.device.name == device.name for post in posts)
            name += f"-{twins + 1}" if twins else ""
            posts.append(WorkerPost(name, device, plan.tiers, run_folder / f"{name}.json"))
    return posts


class Plan:
    """The services of stage 1: web, workers, webhooks, sweeper and Flower. The data services already run."""

    def __init__(
        self, state: State, settings: Settings, endpoints: Endpoints, overrides: Mapping[str, str]
    ) -> None:
        self._state, self._settings, self._endpoints = state, settings, endpoints
        self._environment = {
            **base_environment(),
            **overrides,
            "CALOTYPE_PUBLIC_URL": self.url,
            "PYTHONPATH": str(ROOT),  # celery drops the current folder once it has imported its app
            "PYTHONUNBUFFERED": "1",
        }
        self.run_folder = state.subfolder("run")
        self.posts = worker_posts(settings.catalogue, self.run_folder)
        state.add_ports(f"metrics_{post.name}" for post in self.posts)

    @property
    def url(self) -> str:
        """The URL of the REST API."""
        return f"http://{self._state.host}:{self._state.ports['web']}"

    @property
    def metrics_url(self) -> str:
        """The URL that Prometheus scrapes."""
        return self.metrics_urls["web"]

    @property
    def metrics_urls(self) -> dict[str, str]:
        """The metrics URL of each process, by its name."""
        names = {"web": "metrics", "webhooks": "metrics_webhooks", "sweep": "metrics_sweep"}
        names |= {post.name: f"metrics_{post.name}" for post in self.posts}
        host = self._settings.metrics_host
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return {name: f"http://{host}:{self._state.ports[port]}/metrics" for name, port in names.items()}

    @property
    def flower_url(self) -> str:
        """The URL of Flower."""
        return f"http://{LOOPBACK}:{self._state.ports['flower']}"

    @property
    def flower_auth(self) -> str:
        """Flower's `user:password`."""
        return f"{self._state.flower_user}:{self._state.secrets['flower_password']}"

    def migrate(self) -> None:
        """Migrate the schema to its newest version."""
        log = self._state.logs / "migrate.log"
        with log.open("wb") as output:
            answer = subprocess.run(
                [_PYTHON, "-m", "alembic", "upgrade", "head"],
                cwd=ROOT,
                env={**self._environment, **self._endpoints.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the supervisor handles Ctrl-C
                check=False,
            )
        if answer.returncode != 0:
            raise LocalError(f"the migrations failed; the end of their log {log}:\n{tail(log)}")

    def standbys(self, say: Callable[[str], None] = lambda _: None) -> Standbys:
        """Begin to import what the services need, while the data services start; close the result.

        Workers on GPUs are started as usual, because a process that has touched CUDA must not fork.
        """
        groups = [ImportGroup(_SHARED_IMPORTS, _IMPORTS)]
        threads = [post.device.environment for post in self.posts if post.device.name.startswith("cpu:")]
        if len(threads) == len(self.posts) and all(one == threads[0] for one in threads):
            # One environment, because libraries read the number of threads when they are imported.
            groups.append(ImportGroup(("tasks.worker",), {post.name: () for post in self.posts}))
        environment = {**self._environment, **(threads[0] if threads else {})}
        return Standbys(
            groups,
            environment={name: value for name, value in environment.items() if not _SECRET.search(name)},
            logs=self._state.logs,
            inherit=self._state.held,
            say=say,
        )

    def services(self, take_back_jobs: Callable[[str], None]) -> list[Service]:
        """Return all services; `take_back_jobs` is called with the boot id of a worker that has ended."""
        workers = [self._worker(post, take_back_jobs) for post in self.posts]
        return [self._web(), *workers, self._webhooks(), self._sweep(), self._flower()]

    def _web(self) -> Service:
        command = [_PYTHON, "-m", "cli", "api"]
        command += [f"--host={self._state.host}", f"--port={self._state.ports['web']}"]
        more = self._metrics_at("metrics")
        answers = _answering(self._state.host, self._state.ports["web"], "/healthz")
        return self._service("web", "api", command, more=more, ready=answers, stop_seconds=15)

    def _worker(self, post: WorkerPost, take_back_jobs: Callable[[str], None]) -> Service:
        command = [_PYTHON, "-m", "cli", "worker", "--device", post.device.name]
        command += ["--tiers", ",".join(post.tiers), "--ready-file", str(post.report_file)]
        command.append(f"--metrics-port={self._state.ports[f'metrics_{post.name}']}")

        def environment() -> dict[str, str]:
            # Every start has its own boot id, so that only the jobs of that process are taken back.
            own = {"CALOTYPE_BOOT_ID": str(uuid.uuid4()), "CALOTYPE_RUN_DIR": str(self.run_folder)}
            return {**self._environment_of("worker"), **post.device.environment, **own}

        return Service(
            name=post.name,
            command=lambda: command,
            environment=environment,
            cwd=ROOT,
            stage=1,
            ready=lambda: post.report() is not None,
            before_start=post.clear,
            on_exit=lambda end: take_back_jobs(end.environment["CALOTYPE_BOOT_ID"]),
            cores=post.device.cores,
            start_seconds=ENGINE_START_SECONDS + self._settings.self_test_seconds,
            stop_seconds=self._settings.drain_seconds + 10,
        )

    def _webhooks(self) -> Service:
        report_file = self._state.subfolder("run") / "webhooks.json"
        command = [_PYTHON, "-m", "cli", "worker", "--device", "none", "--ready-file", str(report_file)]
        return self._service(
            "webhooks",
            "sender",
            command,
            more=self._metrics_at("metrics_webhooks"),
            ready=report_file.exists,
            before_start=lambda: report_file.unlink(missing_ok=True),
            stop_seconds=self._settings.webhook_timeout_seconds + 10,
        )

    def _sweep(self) -> Service:
        more = self._metrics_at("metrics_sweep")
        return self._service("sweep", "sweeper", [_PYTHON, "-m", "cli", "sweep"], more=more)

    def _flower(self) -> Service:
        command = [_PYTHON, "-m", "celery", "-A", "tasks.flower:celery", "flower", "--read-only"]
        command += [f"--address={LOOPBACK}", f"--port={self._state.ports['flower']}"]
        more = {
            "FLOWER_BASIC_AUTH": self.flower_auth,
            "FLOWER_COOKIE_SECRET": self._state.secrets["flower_cookie"],
        }
        answers = _answering(LOOPBACK, self._state.ports["flower"], "/", self.flower_auth)
        return self._service("flower", "flower", command, more=more, ready=answers, stop_seconds=5)

    def _metrics_at(self, port: str) -> dict[str, str]:
        return {"CALOTYPE_METRICS_PORT": str(self._state.ports[port])}

    def _environment_of(self, role: Role) -> dict[str, str]:
        return {**self._environment, **self._endpoints.environment_of(role)}

    def _service(
        self,
        name: str,
        role: Role,
        command: list[str],
        *,
        more: Mapping[str, str] | None = None,
        ready: Callable[[], bool] = lambda: True,
        before_start: Callable[[], None] = lambda: None,
        stop_seconds: float = 10,
    ) -> Service:
        environment = {**self._environment_of(role), **(more or {})}
        return Service(
            name=name,
            command=lambda: command,
            environment=lambda: environment,
            cwd=ROOT,
            stage=1,
            ready=ready,
            before_start=before_start,
            stop_seconds=stop_seconds,
        )


def _answering(host: str, port: int, path: str, auth: str | None = None) -> Callable[[], bool]:
    """Return a probe that checks whether a GET returns 200."""
    headers = {"Authorization": "Basic " + base64.b64encode(auth.encode()).decode()} if auth else {}

    def answers() -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=2)
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return answers
