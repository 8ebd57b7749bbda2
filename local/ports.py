"""Free TCP ports of one address, loopback unless another is given, chosen once per data folder.

SeaweedFS adds one rule: it also listens on its port + 10000, and leaves sockets named after both in /tmp.
"""

import os
import random
import socket
from collections.abc import Iterable
from pathlib import Path

LOOPBACK = "127.0.0.1"
GRPC_OFFSET = 10_000
SEAWEEDFS_PORTS = ("s3", "s3_master", "s3_volume", "s3_filer", "s3_admin")
PORT_NAMES = (
    "postgres",
    "valkey",
    *SEAWEEDFS_PORTS,
    "web",
    "metrics",
    "metrics_webhooks",
    "metrics_sweep",
    "flower",
)

# Port and port + 10000 both stay below 32768, where Linux begins to hand out ports to outgoing connections.
_LOWEST, _HIGHEST = 12_000, 22_700
_SOCKETS = Path("/tmp")  # SeaweedFS ignores TMPDIR


def choose_ports(names: Iterable[str], taken: Iterable[int] = (), host: str = LOOPBACK) -> dict[str, int]:
    """Choose a free port for each name, none of them in `taken` or in conflict with another."""
    refused = {number for port in taken for number in (port, port + GRPC_OFFSET)}
    chosen: dict[str, int] = {}
    for name in names:
        for port in random.sample(range(_LOWEST, _HIGHEST), _HIGHEST - _LOWEST):
            if port not in refused and port + GRPC_OFFSET not in refused and is_usable(name, port, host):
                chosen[name] = port
                refused |= {port, port + GRPC_OFFSET}
                break
        else:
            raise OSError(f"no free port of {host} between {_LOWEST} and {_HIGHEST} for {name}")
    return chosen


def is_usable(name: str, port: int, host: str = LOOPBACK) -> bool:
    """Whether the server of that name can listen on `port` now."""
    if name not in SEAWEEDFS_PORTS:
        return is_free(port, host)
    mine = all(path.lstat().st_uid == os.geteuid() or os.geteuid() == 0 for path in stale_sockets(port))
    return mine and is_free(port, host) and is_free(port + GRPC_OFFSET, host)


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether `port` can be opened: nothing listens on it, and `host` is an address of this machine."""
    with socket.socket() as probe:
        # Without this option, old connections in TIME_WAIT would look like a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def stale_sockets(port: int) -> list[Path]:
    """Return SeaweedFS' sockets of that port; those that a kill -9 leaves behind block the next start."""
    numbers = (port, port + GRPC_OFFSET)
    return [path for number in numbers for path in _SOCKETS.glob(f"seaweedfs-*-{number}.sock")]
