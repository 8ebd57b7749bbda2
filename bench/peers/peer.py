"""The peers: which packages each needs, which processes it is, and the settings that are tried.

It starts them in processes of their own, with their packages before ours, and stops them. It knows neither
load nor figures. A peer that is not installed is left out and named.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path

import psutil

from bench.configuration import ROOT
from bench.fronts import free_port
from bench.peers.drawing import MAX_BATCH, PORT, WAIT_SECONDS
from bench.peers.service import Jobs, NoImage, Route, Service
from bench.plane.system import plane_system
from bench.workload import mixed_requests
from local.endpoints import base_environment
from local.process import Process, tail
from local.state import State
from local.valkey import Valkey

START_SECONDS, STOP_SECONDS = 300.0, 10.0
PROBE_SECONDS, QUIET_SHARE = 0.5, 0.6
"""A service that uses less than this share of a core has loaded; LitServe polls its queues all the time."""
SETTLE_SECONDS = 6.0
"""Longer than a heartbeat: after a stop, the API knows its workers again."""
NUM_PROCESSES = 2
"""Workers of each peer, one for each core of the machine that the figures are from."""
FRONT_THREADS = 256
OURS = "calotype"


@dataclass(frozen=True)
class Settings:
    """The most requests of a batch, and how long it waits to fill."""

    max_batch: int = 1
    wait_seconds: float = 0.1

    def __str__(self) -> str:
        if self.max_batch == 1:
            return "one at a time"
        return f"batches of {self.max_batch}, {1000 * self.wait_seconds:g} ms"


@dataclass(frozen=True)
class Peer:
    """One way to serve: commands follow `python -m`, and PORT stands for the port."""

    name: str
    packages: str
    module: str
    commands: Sequence[Sequence[str]]
    path: str = "/draw"
    is_list: bool = False
    tasks: str = ""
    sizes: Sequence[int] = (1, 4, 8, 16, 32)
    waits_seconds: Sequence[float] = (0.01, 0.1, 0.5)
    saturated_wait_seconds: float = 0.1
    """The wait of the search for its capacity, where batches are always full."""


_FRONT = (
    "gunicorn", "--workers", "1", "--worker-class", "gthread", "--threads", str(FRONT_THREADS),
    "--timeout", "0", "--no-control-socket", "--bind", "127.0.0.1:PORT",
    "bench.peers.celery_front:application",
)  # fmt: skip


def _celery(tasks: str) -> tuple[tuple[str, ...], ...]:
    worker = (
        "celery",
        "--app",
        tasks,
        "worker",
        "--concurrency",
        str(NUM_PROCESSES),
        "--loglevel",
        "WARNING",
    )
    return (*worker, "--without-gossip", "--without-mingle"), _FRONT


PEERS = (
    Peer("LitServe", "litserve", "litserve", [["bench.peers.with_litserve"]], path="/predict"),
    Peer(
        "celery-batches",
        "celery-batches",
        "celery_batches",
        _celery("bench.peers.with_celery_batches"),
        tasks="bench.peers.with_celery_batches",
    ),
    Peer("Ray Serve", "ray-serve", "ray", [["bench.peers.with_ray_serve"]], path="/"),
    Peer(
        "BentoML",
        "bentoml",
        "bentoml",
        [
            [
                "bentoml",
                "serve",
                "bench.peers.with_bentoml:TextToImage",
                "--host",
                "127.0.0.1",
                "--port",
                "PORT",
            ]
        ],
        is_list=True,
        waits_seconds=(1.0, 10.0, 60.0),
        saturated_wait_seconds=600.0,
    ),
    Peer(
        "Celery task",
        "celery",
        "gunicorn",
        _celery("bench.peers.with_celery"),
        tasks="bench.peers.with_celery",
        sizes=(1,),
        waits_seconds=(0.1,),
    ),
)


def why_absent(peer: Peer, packages: Path) -> str:
    """Return what is not installed, or nothing."""
    folder = packages / peer.packages
    return "" if (folder / peer.module).is_dir() else f"{peer.module} is not installed in {folder}"


@contextmanager
def started(peer: Peer, settings: Settings, packages: Path, folder: Path) -> Iterator[Service]:
    """Run a peer while the body runs; it has drawn before. Raises `RuntimeError` with the end of its log."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = _environment(peer, settings, packages, folder) | {PORT: str(port)}
    processes: list[tuple[Process, Path]] = []
    with ExitStack() as stack:
        if peer.tasks:
            environment["PEER_BROKER"] = stack.enter_context(_broker(folder / "broker", processes))
        for number, command in enumerate(peer.commands):
            words = [word.replace("PORT", str(port)) for word in command]
            log = folder / f"{number}.log"
            process = Process([sys.executable, "-m", *words], environment, cwd=ROOT, log=log)
            stack.callback(_end, process)
            processes.append((process, log))
        service = Service(
            peer.name,
            Route(port, peer.path, peer.is_list),
            [one.pid for one, _ in processes],
            asdict(settings),
        )
        _wait_until_loaded(service, processes)
        yield service


def _environment(peer: Peer, settings: Settings, packages: Path, folder: Path) -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    own = {
        "PYTHONPATH": f"{packages / peer.packages}{os.pathsep}{ROOT}",
        "PEER_FOLDER": str(folder),
        "PEER_TASKS": peer.tasks,
        MAX_BATCH: str(settings.max_batch),
        WAIT_SECONDS: str(settings.wait_seconds),
    }
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(folder / "bentoml"),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return {**base_environment(), **threads, **own, **quiet}


@contextmanager
def _broker(folder: Path, processes: list[tuple[Process, Path]]) -> Iterator[str]:
    """The project's embedded Valkey while the body runs; yield its URL."""
    with State.open(folder) as state:
        state.settle_ports(lambda _: None)
        valkey = Valkey(state)
        valkey.prepare()
        log = folder / "valkey.log"
        process = Process(valkey.command(), valkey.environment(), cwd=folder, log=log)
        processes.append((process, log))
        try:
            deadline = time.monotonic() + START_SECONDS
            while not valkey.ready():
                _check(processes, deadline)
                time.sleep(0.05)
            yield valkey.url()
        finally:
            _end(process)


def _wait_until_loaded(service: Service, processes: Sequence[tuple[Process, Path]]) -> None:
    """Wait for a first image, then until no process works any more: every worker has loaded the model."""
    (request,) = mixed_requests(1, 64, seed=0)
    deadline = time.monotonic() + START_SECONDS
    has_drawn, before = False, 0.0
    while True:
        _check(processes, deadline)
        if not has_drawn:
            with suppress(NoImage, OSError, HTTPException):
                service.draw(request, seconds=START_SECONDS / 5)
                has_drawn = True
        elif service.cpu_seconds() - before < QUIET_SHARE * PROBE_SECONDS:
            return
        before = service.cpu_seconds()
        time.sleep(PROBE_SECONDS)


def _check(processes: Sequence[tuple[Process, Path]], deadline: float) -> None:
    for process, log in processes:
        code = process.poll()
        if code is not None:
            raise RuntimeError(f"it ended with {code} at its start: {_last_line(log)}\n{tail(log, 20)}")
    if time.monotonic() > deadline:
        lines = "; ".join(_last_line(log) for _, log in processes)
        raise RuntimeError(f"it has drawn nothing in {START_SECONDS:.0f} s: {lines}")


def _last_line(log: Path) -> str:
    lines = [line for line in tail(log, 20).splitlines() if line.strip()]
    return lines[-1] if lines else "its log is empty"


def _end(process: Process) -> None:
    """Ask it to stop, then kill it and whatever it has started."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.resume()
    process.interrupt(signal.SIGCONT)
    process.interrupt(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()


@contextmanager
def our_service(folder: Path) -> Iterator[Service]:
    """What `calotype up` runs, with rows, uploads and the sweeper, as it is shipped; two workers."""
    with plane_system(folder) as plane:
        yield Service(
            OURS,
            Jobs(plane.url, plane.api_key),
            list(plane.pids.values()),
            {"settings": "as shipped"},
            settles_seconds=SETTLE_SECONDS,
        )
