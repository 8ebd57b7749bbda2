"""The whole system behind proxies that fail: what `calotype up` runs, with one worker on the processor.

A part fails by its proxy, or by stopping its processes. It does not know the clients.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from bench.configuration import write_configuration
from bench.fault_load import Client
from bench.faulty_proxy import Fault, Proxies, proxied
from client import calotype
from local.up import running

STOPPED = "stopped"
"""The server's processes are stopped by SIGSTOP; the kernel still accepts connections and bytes for them."""
SERVERS = {"postgres": "postgres", "broker": "valkey", "s3": "s3"}
"""The names that `calotype up` uses for the parts in `/readyz`."""


class System:
    """Everything that `calotype up` runs, with a proxy before each data service."""

    def __init__(self, ready: Mapping[str, Any], proxies: Proxies) -> None:
        self._pids = {service["name"]: int(service["pid"]) for service in ready["services"]}
        self._proxies = proxies
        self.make_client: Callable[[], Client] = partial(Client, ready["url"], ready["api_key"])
        self.make_service: Callable[[], calotype.Client] = partial(
            calotype.Client, url=ready["url"], api_key=ready["api_key"]
        )

    @contextmanager
    def failing(self, part: str, fault: str) -> Iterator[None]:
        """Let that part fail in this way while the body runs."""
        server = SERVERS[part]
        if fault == STOPPED:
            with stopped_tree(self._pids[server]):
                yield
            return
        self._proxies.suffer(server, Fault(fault))
        try:
            yield
        finally:
            self._proxies.suffer(server, Fault.NONE)


@contextmanager
def run_system(folder: Path, overrides: Mapping[str, str] | None = None) -> Iterator[System]:
    """The system while the body runs, with one worker on the processor."""
    config = write_configuration(folder, ["cpu:0"])
    with ExitStack() as stack:
        started: list[Proxies] = []

        def reached_at(ports: Mapping[str, int]) -> Mapping[str, int]:
            servers = {name: ports[name] for name in SERVERS.values()}
            started.append(stack.enter_context(proxied(servers)))
            return started[0].ports

        settings = {"CALOTYPE_CONFIG": str(config), **(overrides or {})}
        with running(folder / "data", say=print, overrides=settings, reached_at=reached_at) as ready:
            yield System(ready, started[0])


@contextmanager
def stopped_tree(pid: int) -> Iterator[None]:
    """Stop a process that we started, and all its children, while the body runs."""
    halted: list[int] = []
    try:
        _halt(pid, halted)
        yield
    finally:
        for child in reversed(halted):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)


def _halt(pid: int, halted: list[int]) -> None:
    os.kill(pid, signal.SIGSTOP)  # the parent first, so that it starts no more children
    halted.append(pid)
    for child in _children(pid):
        with suppress(ProcessLookupError):
            _halt(child, halted)


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
