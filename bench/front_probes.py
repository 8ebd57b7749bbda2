"""Measures an HTTP server beside slow clients from outside: the time of a probe, the accepted submissions.

It knows the server's address and process id, and neither how it was started nor what it runs.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from bench.slow_clients import KINDS, Target, seconds_until_cut, slow_clients

NUM_SUBMISSIONS = 20
NUM_STREAMS = 400
NUM_WAITERS = 100
TIMEOUT_SECONDS = 10.0
"""The time limit of an answer; a missing answer counts as this long."""
BAR_SECONDS = 1.0
MAX_PATIENCE_SECONDS = 120.0
"""The time for which a lone slow client waits to be disconnected."""


@dataclass(frozen=True)
class Row:
    """One server under one load: the seconds of `/healthz` and of the submissions."""

    front: str
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
        cells = [self.front, self.load, *(f"{value:.3f}" for value in (self.p50, self.p99, self.longest))]
        cells += [f"{self.num_accepted}/{NUM_SUBMISSIONS}", f"{self.longest_submission:.2f}"]
        cells += [f"{self.max_rss_mebibytes:.0f}", self.more, "yes" if self.holds else "**no**"]
        return "| " + " | ".join(cells) + " |"


HEADINGS = ("front", "load", "p50", "p99", "max", "accepted", "longest", "RSS MiB", "", "holds")


@dataclass(frozen=True)
class Server:
    """A running server, and the requests of its submissions and its slow clients."""

    name: str
    port: int
    pid: int
    key: str
    submit_path: str
    large_path: str

    @property
    def target(self) -> Target:
        """The paths for slow clients, which have no key."""
        return Target(self.port, large_path=self.large_path, body_path=self.submit_path)

    def rss_bytes(self) -> int:
        """The memory of the process and its children; shared pages count once for each."""
        total, first = 0, psutil.Process(self.pid)
        for process in (first, *first.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total


def measure(server: Server, load: str, num_clients: int, seconds: float) -> Row:
    """One row of the table."""
    if load == "streams":
        return asyncio.run(_under_streams(server, seconds))
    with slow_clients(load, server.target, num_clients):
        probes = asyncio.run(_probe(server, seconds))
    return probes.row(server.name, load)


def cuts(server: Server) -> str:
    """After how many seconds the server ends a lone connection of each kind, as a row of a table."""
    found = asyncio.run(seconds_until_cut(server.target, MAX_PATIENCE_SECONDS))
    shown = ("never" if found[kind] is None else f"{found[kind]:.0f}" for kind in KINDS)
    return "| " + " | ".join([server.name, *shown]) + " |"


@dataclass
class Probes:
    """The results of the probes."""

    health: list[float]
    submissions: list[tuple[float, int]]
    rss_bytes: list[int]

    def row(self, front: str, load: str, more: str = "") -> Row:
        """As a row of the table."""
        ordered = sorted(self.health)
        return Row(
            front,
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
        took, status = await ask_health(server.port)
        probes.health.append(took if status == 200 else TIMEOUT_SECONDS)
        probes.rss_bytes.append(server.rss_bytes())

    async def submission() -> None:
        probes.submissions.append(await submit(server))

    async with asyncio.TaskGroup() as group:
        group.create_task(_repeat(group, health, until, 0.05))
        group.create_task(_repeat(group, submission, until, seconds / NUM_SUBMISSIONS, NUM_SUBMISSIONS))
    return probes


async def _repeat(
    group: asyncio.TaskGroup, begin: Callable[[], object], until: float, every: float, most: int = 1 << 30
) -> None:
    """Start requests at a fixed rate, regardless of how long answers take."""
    due = time.monotonic()
    while time.monotonic() < until and most > 0:
        group.create_task(begin())  # type: ignore[arg-type]
        most, due = most - 1, due + every
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def ask_health(port: int) -> tuple[float, int]:
    """Seconds and status of one `/healthz` on a connection of its own; status 0 for none."""
    return await request(port, "GET /healthz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")


async def submit(server: Server) -> tuple[float, int]:
    """Return seconds and status of one submission."""
    body = json.dumps({"prompt": "a red heart" * 20})
    head = f"POST {server.submit_path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {server.key}\r\nContent-Type: application/json\r\n"
    return await request(server.port, f"{head}Content-Length: {len(body)}\r\n\r\n{body}")


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


async def _under_streams(server: Server, seconds: float) -> Row:
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
    return probes.row(server.name, "streams", more)
