"""Which HTTP front carries slow clients: each candidate before the same routes, measured from outside.

For each kind of slow client 1,000 connections are held open while `/healthz` is asked on fresh connections
and 20 submissions are sent; then 400 event streams and 100 waiting requests are open on the one process. With
`--loads cuts` one client of each kind waits for the server to lose its patience instead.

A candidate that is not installed is left out, and named: `--packages` is a folder of `pip install --target`
with those that are no dependencies of ours.

    python -m bench.fronts --seconds 30 --packages build/fronts
"""

import argparse
import asyncio
import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from bench.fronts_app import KEY
from bench.slow_clients import KINDS, Target, seconds_until_cut, slow_clients

ROOT = Path(__file__).resolve().parent.parent
NUM_SUBMISSIONS = 20
NUM_STREAMS = 400
NUM_WAITERS = 100
TIMEOUT_SECONDS = 10.0
"""What an answer may take; one that does not come counts as this long."""
BAR_SECONDS = 1.0
MAX_PATIENCE_SECONDS = 120.0
"""How long a lone slow client waits to be cut."""


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


@dataclass(frozen=True)
class Row:
    """What one candidate did under one load; `seconds` of those who asked `/healthz`, in order."""

    candidate: str
    load: str
    p50: float
    p99: float
    longest: float
    num_accepted: int
    longest_submission: float
    max_rss_mebibytes: float
    more: str = ""

    @property
    def holds(self) -> bool:
        """Whether a normal request stays below the bar and every submission is accepted."""
        return self.p99 <= BAR_SECONDS and self.num_accepted == NUM_SUBMISSIONS

    def __str__(self) -> str:
        cells = [self.candidate, self.load, *(f"{value:.3f}" for value in (self.p50, self.p99, self.longest))]
        cells += [f"{self.num_accepted}/{NUM_SUBMISSIONS}", f"{self.longest_submission:.2f}"]
        cells += [f"{self.max_rss_mebibytes:.0f}", self.more, "yes" if self.holds else "**no**"]
        return "| " + " | ".join(cells) + " |"


HEADINGS = ("front", "load", "p50", "p99", "max", "accepted", "longest", "RSS MiB", "", "holds")


class Server:
    """A candidate that runs."""

    def __init__(self, port: int, process: psutil.Process) -> None:
        self.port = port
        self._process = process

    def rss_bytes(self) -> int:
        """Of the process and its children, shared pages counted once for each."""
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total


def main() -> None:
    """Measure, print a table, and write it to `bench-output/fronts.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="of each load")
    parser.add_argument("--clients", type=int, default=1000, help="slow connections of each kind")
    parser.add_argument("--only", default="", help="candidates whose name contains this")
    parser.add_argument("--loads", default="", help="kinds of slow clients, with commas; or `streams`")
    parser.add_argument("--packages", type=Path, default=ROOT / "build" / "fronts")
    options = parser.parse_args()
    loads = options.loads.split(",") if options.loads else [*KINDS, "streams"]
    rows: list[Row] = []
    headings = ("front, seconds until it cuts:", *KINDS) if loads == ["cuts"] else HEADINGS
    print("| " + " | ".join(headings) + " |\n" + "|---" * len(headings) + "|")
    for candidate in CANDIDATES:
        if options.only not in candidate.name:
            continue
        if reason := why_absent(candidate, options.packages):
            print(f"| {candidate.name} | left out: {reason} |" + " |" * (len(HEADINGS) - 2), flush=True)
            continue
        if loads == ["cuts"]:
            with started(candidate, options.packages) as server:
                print(cuts(candidate, server), flush=True)
            continue
        for load in loads:
            with started(candidate, options.packages) as server:
                row = measure(candidate, server, load, options.clients, options.seconds)
            rows.append(row)
            print(row, flush=True)
    if not rows:
        return
    output = ROOT / "bench-output" / "fronts.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def why_absent(candidate: Candidate, packages: Path) -> str:
    """What is not installed; nothing where all is there."""
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
                yield Server(port, psutil.Process(processes[0].pid))
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
    """End it and whatever it started, at once."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
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


def measure(candidate: Candidate, server: Server, load: str, num_clients: int, seconds: float) -> Row:
    """One row of the table."""
    if load == "streams":
        return asyncio.run(_under_streams(candidate, server, seconds))
    target = Target(server.port, large_path="/large", body_path="/submit")
    with slow_clients(load, target, num_clients):
        probes = asyncio.run(_probe(server, seconds))
    return probes.row(candidate.name, load)


def cuts(candidate: Candidate, server: Server) -> str:
    """After how many seconds the server ends a lone connection of each kind, as a row of a table."""
    target = Target(server.port, large_path="/large", body_path="/submit")
    found = asyncio.run(seconds_until_cut(target, MAX_PATIENCE_SECONDS))
    shown = ("never" if found[kind] is None else f"{found[kind]:.0f}" for kind in KINDS)
    return "| " + " | ".join([candidate.name, *shown]) + " |"


@dataclass
class Probes:
    """What the probes saw."""

    health: list[float]
    submissions: list[tuple[float, int]]
    rss_bytes: list[int]

    def row(self, candidate: str, load: str, more: str = "") -> Row:
        """As a row of the table."""
        ordered = sorted(self.health)
        return Row(
            candidate,
            load,
            p50=statistics.median(ordered),
            p99=ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
            longest=ordered[-1],
            num_accepted=sum(status == 202 for _, status in self.submissions),
            longest_submission=max(seconds for seconds, _ in self.submissions),
            max_rss_mebibytes=max(self.rss_bytes) / 2**20,
            more=more,
        )


async def _probe(server: Server, seconds: float) -> Probes:
    """Ask `/healthz` twenty times a second, and submit twenty times, evenly spread."""
    probes = Probes([], [], [])
    until = time.monotonic() + seconds

    async def health() -> None:
        took, _ = await ask_health(server.port)
        probes.health.append(took)
        probes.rss_bytes.append(server.rss_bytes())

    async def submission() -> None:
        probes.submissions.append(await submit(server.port))

    async with asyncio.TaskGroup() as group:
        group.create_task(_repeat(group, health, until, 0.05))
        group.create_task(_repeat(group, submission, until, seconds / NUM_SUBMISSIONS, NUM_SUBMISSIONS))
    return probes


async def _repeat(
    group: asyncio.TaskGroup, begin: Callable[[], object], until: float, every: float, most: int = 1 << 30
) -> None:
    """Begin at a fixed rate, whatever the answers take: nobody who is slow slows the asking down."""
    due = time.monotonic()
    while time.monotonic() < until and most > 0:
        group.create_task(begin())  # type: ignore[arg-type]
        most, due = most - 1, due + every
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def ask_health(port: int) -> tuple[float, int]:
    """Seconds and status of one `/healthz` on a connection of its own; status 0 for none."""
    return await request(port, "GET /healthz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")


async def submit(port: int) -> tuple[float, int]:
    """Likewise of one submission."""
    body = json.dumps({"prompt": "a red heart" * 20})
    head = f"POST /submit HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nAuthorization: {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return await request(port, head + body)


async def request(port: int, text: str) -> tuple[float, int]:
    """Seconds and status of a request on a connection of its own."""
    began = time.monotonic()
    status = 0
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(text.encode())
            line = await reader.readline()
            status = int(line.split()[1]) if line else 0
            writer.transport.abort()
    except (OSError, TimeoutError):
        pass
    return (time.monotonic() - began if status else TIMEOUT_SECONDS), status


async def _under_streams(candidate: Candidate, server: Server, seconds: float) -> Row:
    """400 event streams and 100 waits; how late events come tells whether anything holds them back."""
    late: list[float] = []
    ends: list[float] = []

    async def stream() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /events HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n")
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    late.append(time.monotonic() - float(line[6:]))
        except OSError:
            return

    async def wait() -> None:
        began = time.monotonic()
        text = f"GET /wait?seconds={seconds / 2} HTTP/1.1\r\nHost: bench\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(text.encode())
        if b" 200 " in await reader.readline():
            ends.append(time.monotonic() - began - seconds / 2)
        writer.close()

    tasks = [asyncio.create_task(stream()) for _ in range(NUM_STREAMS)]
    tasks += [asyncio.create_task(wait()) for _ in range(NUM_WAITERS)]
    await asyncio.sleep(1)
    late.clear()
    probes = await _probe(server, seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    expected = NUM_STREAMS * seconds
    p99 = sorted(late)[int(len(late) * 0.99)] if late else TIMEOUT_SECONDS
    more = f"{len(late) / expected:.0%} of events, p99 {p99:.3f} s late; {len(ends)} of {NUM_WAITERS} waits"
    more += f" ended, {max(ends, default=TIMEOUT_SECONDS):.2f} s late at most"
    return probes.row(candidate.name, "streams", more)


if __name__ == "__main__":
    main()
