"""Compares HTTP fronts under slow clients: all serve the same routes and are measured from outside.

For each kind of slow client, 1,000 connections are held open while `/healthz` is requested on new connections
and 20 submissions are sent; then 400 event streams and 100 waiting requests are open on the one process. With
`--loads cuts`, one client of each kind waits until the server disconnects it.

A candidate that is not installed is left out, and named: `--packages` is a folder of `pip install --target`
with those that are no dependencies of ours.

    python -m bench.fronts --seconds 30 --packages build/fronts
    python -m bench.fronts --port 8000 --pid PID --key KEY --loads "silent,half body,slow reader"
"""

import argparse
import asyncio
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil

from bench.front_probes import HEADINGS, Row, Server, ask_health, cuts, measure
from bench.fronts_app import KEY
from bench.slow_clients import KINDS

ROOT = Path(__file__).resolve().parent.parent
LARGE_PATH = "/docs/js/swagger-ui-bundle.js"
"""The largest answer of the API that takes no key."""


@dataclass(frozen=True)
class Candidate:
    """A way to serve the routes; `arguments` follow `python -m MODULE`, and `PORT` stands for the port."""

    name: str
    module: str
    arguments: str
    is_behind_caddy: bool = False


_GUNICORN = (
    "--workers 1 --worker-class gthread --threads 32 --no-control-socket --bind 127.0.0.1:PORT "
    "bench.fronts_app:application"
)
_WAITRESS = (
    "--threads 32 --connection-limit 4096 --asyncore-use-poll --port PORT bench.fronts_app:application"
)
_GRANIAN = (
    "--workers 1 --http 1 --no-ws --backpressure 4096 --backlog 4096 --http1-header-read-timeout 10000 "
    "--port PORT"
)
_UVICORN = "--port PORT --lifespan off --http h11 --timeout-keep-alive 75 bench.fronts_app:front"

CANDIDATES = (
    Candidate("gunicorn gthread", "gunicorn", _GUNICORN),
    Candidate("Caddy, gunicorn gthread", "gunicorn", _GUNICORN, is_behind_caddy=True),
    Candidate("waitress", "waitress", _WAITRESS),
    Candidate(
        "granian WSGI",
        "granian",
        f"--interface wsgi --blocking-threads 32 {_GRANIAN} bench.fronts_app:application",
    ),
    Candidate("granian, our ASGI", "granian", f"--interface asginl {_GRANIAN} bench.fronts_app:front"),
    Candidate("uvicorn, our ASGI", "uvicorn", _UVICORN),
    Candidate("uvicorn, our ASGI and deadlines", "bench.fronts_app", "PORT"),
)


def main() -> None:
    """Measure, print a table, and write it to `bench-output/fronts.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="of each load")
    parser.add_argument("--clients", type=int, default=1000, help="slow connections of each kind")
    parser.add_argument("--only", default="", help="candidates whose name contains this")
    parser.add_argument("--loads", default="", help="kinds of slow clients, with commas; or `streams`")
    parser.add_argument("--port", type=int, help="of a `calotype api` that runs, in place of the candidates")
    parser.add_argument("--pid", type=int, help="its process; all but `streams` can be asked of it")
    parser.add_argument("--key", help="an API key for it")
    parser.add_argument("--packages", type=Path, default=ROOT / "build" / "fronts")
    options = parser.parse_args()
    loads = options.loads.split(",") if options.loads else [*KINDS, "streams"]
    headings = ("front, seconds until it cuts:", *KINDS) if loads == ["cuts"] else HEADINGS
    print("| " + " | ".join(headings) + " |\n" + "|---" * len(headings) + "|")
    rows: list[Row] = []
    for start in starts(options):
        for load in loads:
            with start() as server:
                if load == "cuts":
                    print(cuts(server), flush=True)
                    continue
                rows.append(measure(server, load, options.clients, options.seconds))
            print(rows[-1], flush=True)
    if not rows:
        return
    output = ROOT / "bench-output" / "fronts.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def starts(options: argparse.Namespace) -> Iterator[Callable[[], AbstractContextManager[Server]]]:
    """Yield what is measured, restarted for each load: the API that already runs, or every candidate."""
    if options.port:
        api = Server("calotype api", options.port, options.pid, options.key, "/v1/jobs", LARGE_PATH)
        yield lambda: nullcontext(api)
        return
    for candidate in CANDIDATES:
        if options.only in candidate.name:
            if reason := why_absent(candidate, options.packages):
                print(f"| {candidate.name} | left out: {reason} |", flush=True)
            else:
                yield partial(started, candidate, options.packages)


def why_absent(candidate: Candidate, packages: Path) -> str:
    """Return what is not installed; None if everything is."""
    if not (packages / candidate.module).is_dir() and not importlib.util.find_spec(candidate.module):
        return f"{candidate.module} is not installed"
    if candidate.is_behind_caddy and _caddy(packages) is None:
        return "caddy is not installed"
    return ""


def _caddy(packages: Path) -> str | None:
    return shutil.which("caddy", path=f"{packages / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")


@contextmanager
def started(candidate: Candidate, packages: Path) -> Iterator[Server]:
    """The candidate while the body runs."""
    port, inner = free_port(), free_port()
    own = inner if candidate.is_behind_caddy else port
    arguments = candidate.arguments.replace("PORT", str(own)).split()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}", "PYTHONUNBUFFERED": "1"}
    commands = [[sys.executable, "-m", candidate.module, *arguments]]
    with tempfile.TemporaryDirectory() as folder:
        if candidate.is_behind_caddy:
            commands.append(
                [str(_caddy(packages)), "run", "--config", caddy_config(Path(folder), port, inner)]
            )
            environment |= {"XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder}
        with (Path(folder) / "log").open("wb") as log:
            processes = [
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
                for command in commands
            ]
            try:
                wait_until_answering(port, Path(folder) / "log")
                yield Server(candidate.name, port, processes[0].pid, KEY, "/submit", "/large")
            finally:
                for process in processes:
                    kill_tree(process)


def caddy_config(folder: Path, port: int, inner: int) -> str:
    """Caddy with a deadline for header, body, and idle connections, before a server on `inner`."""
    server = {
        "listen": [f"127.0.0.1:{port}"],
        "read_header_timeout": "10s",
        "read_timeout": "30s",
        "idle_timeout": "75s",
        "automatic_https": {"disable": True},
        "routes": [
            {
                "handle": [
                    {"handler": "request_body", "max_size": 65_536},
                    {
                        "handler": "reverse_proxy",
                        "upstreams": [{"dial": f"127.0.0.1:{inner}"}],
                        "request_buffers": 65_536,
                    },
                ]
            }
        ],
    }
    config = {"admin": {"disabled": True}, "apps": {"http": {"servers": {"front": server}}}}
    path = folder / "caddy.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """Kill it and its children."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_answering(port: int, log: Path) -> None:
    """Return with the first answer."""
    deadline = time.monotonic() + 30
    while asyncio.run(ask_health(port))[1] != 200:
        if time.monotonic() > deadline:
            raise SystemExit(f"it does not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
