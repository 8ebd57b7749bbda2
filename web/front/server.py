"""The process that serves: uvicorn over our connections, until it is told to stop."""

import resource
import signal
from collections.abc import Callable
from functools import partial
from socket import socket

import uvicorn

from web.front.application import Front
from web.front.connection import Connection, Connections
from web.front.limits import Limits

MAX_FILES = 65_536
BACKLOG = 2048
"""Of connections that the kernel holds until they are accepted."""
ACCEPT_SHARE = 8
"""Of all places one turn of the event loop accepts at most this part.

asyncio accepts as many at once as its `backlog` says, and reads from none of them before the turn after next:
in a burst that is larger than all places, the first would be cut before their requests were looked at.
"""
RESERVED_FILES = 128
"""For everything that is no client's connection: Postgres, the broker, S3, files."""


class Server(uvicorn.Server):
    """On SIGTERM requests in progress get `drain_seconds`; streams end at once."""

    def __init__(
        self,
        front: Front,
        host: str,
        port: int,
        *,
        limits: Limits,
        connections: Connections,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._front = front
        self._on_stop = on_stop
        config = uvicorn.Config(
            front,
            host=host,
            port=port,
            http=partial(Connection, limits=limits, connections=connections),  # type: ignore[arg-type]
            loop="asyncio",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",  # it warns of each request that is no HTTP; `RefusalLog` counts them
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=max(1, limits.max_connections // ACCEPT_SHARE),
            h11_max_incomplete_event_size=limits.max_header_bytes,
            timeout_keep_alive=int(limits.idle_seconds) + 1,  # our own deadline comes first
            timeout_graceful_shutdown=int(limits.drain_seconds),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """uvicorn's call, on the event loop."""
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                with listening.dup() as same:  # asyncio has told the kernel its own, small backlog
                    same.listen(BACKLOG)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """uvicorn's call, on the event loop."""
        self._on_stop()
        self._front.stop()
        await super().shutdown(sockets)


def serve_until_told(server: Server) -> None:
    """Serve until SIGTERM or SIGINT; returns when everybody has been answered, or the time for it is over."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again when it is done, and a server that has drained ends with 0.
        signal.signal(number, lambda *_: None)
    server.run()


def raise_file_limit() -> int:
    """As many open files as the system grants, and how many that is: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)
