"""Hosts as network namespaces on one bridge, and a network that is cut between two of them.

The process that makes them leaves the machine's network for one of its own, where it is the host of the
services; all traffic stays inside. It needs root, and knows nothing of calotype.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVICES = "10.77.0.1"
_BRIDGE, _PREFIX = "hosts", 24
_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000  # sched.h
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Host:
    """One of the hosts: its address, and its network namespace."""

    address: str
    namespace: str


def leave_network() -> None:
    """Give this process a network of its own, which has loopback alone. Raises `OSError`."""
    _check(_libc.unshare(_CLONE_NEWNET))
    _ip("link", "set", "lo", "up")


def enter(namespace: str) -> None:
    """Move this process, which must have one thread, into a network namespace. Raises `OSError`."""
    descriptor = os.open(_NAMESPACES / namespace, os.O_RDONLY)
    try:
        _check(_libc.setns(descriptor, _CLONE_NEWNET))
    finally:
        os.close(descriptor)


@contextmanager
def hosts(names: Sequence[str]) -> Iterator[Mapping[str, Host]]:
    """Make hosts that reach this process at `SERVICES`, and each other, while the body runs."""
    _ip("link", "add", _BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{SERVICES}/{_PREFIX}", "dev", _BRIDGE)
    _ip("link", "set", _BRIDGE, "up")
    made: dict[str, Host] = {}
    with ExitStack() as stack:
        for number, name in enumerate(names, 2):
            host = Host(f"10.77.0.{number}", f"calotype-{os.getpid()}-{name}")
            _ip("netns", "add", host.namespace)
            stack.callback(_ip, "netns", "delete", host.namespace)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("link", "set", name, "master", _BRIDGE, "up")
            for change in (
                ("link", "set", "lo", "up"),
                ("addr", "add", f"{host.address}/{_PREFIX}", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
            ):
                _ip("-netns", host.namespace, *change)
            made[name] = host
        yield made


@contextmanager
def cut(host: Host, ports: Sequence[int] = ()) -> Iterator[None]:
    """Lose what these ports of the services send to a host, or all that is sent to it, while the body runs.

    The host notices nothing but silence: its own packets arrive.
    """
    pair = ("from", SERVICES, "to", host.address)
    of_ports: list[tuple[str, ...]] = [("ipproto", "tcp", "sport", str(port)) for port in ports]
    with ExitStack() as stack:
        for selector in of_ports or [()]:
            _ip("rule", "add", *pair, *selector, "blackhole")
            stack.callback(_ip, "rule", "delete", *pair, *selector, "blackhole")
        yield


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _check(answer: int) -> None:
    if answer:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
