"""The API's process as it is shipped, on a port of its own."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import httpx2

from settings import ROOT


@dataclass(frozen=True)
class Served:
    """A running process, and where it answers."""

    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def served(
    environment: Mapping[str, str], *, within: Sequence[str] = (), logs: int | IO[bytes] = subprocess.DEVNULL
) -> Iterator[Served]:
    """`calotype api` with these variables, from its first answer on; killed at the end.

    `within` is a command that replaces itself with the one that follows it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [*within, sys.executable, "-m", "cli", "api", f"--port={port}"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=logs) as process:
        try:
            found = Served(process, port)
            _wait_for(found)
            yield found
        finally:
            process.kill()


def _wait_for(found: Served) -> None:
    deadline = time.monotonic() + 240
    while True:
        try:
            httpx2.get(f"{found.url}/healthz", trust_env=False).raise_for_status()
            return
        except httpx2.TransportError:
            assert found.process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not answer"
            threading.Event().wait(0.1)
