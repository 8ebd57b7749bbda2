"""Runs uvicorn with this package's connections until SIGTERM or SIGINT."""

import resource
import signal
from collections.abc import Callable
from functools import partial
from socket import socket
from types import FrameType

import uvicorn

from web.front.application import Front
from web.front.connection import Connection, Connections
from web.front.limits import Limits
from web.front.parent import ALIVE, READY, Parent
from web.front.processes import BACKLOG

MAX_FILES = 65_536
ACCEPT_SHARE = 8
"""The largest share of all connections that one iteration of the event loop accepts.

asyncio accepts as many at once as its `backlog` says, and reads from them two iterations later: in a burst
larger than the limit, the first ones would be closed before their requests were read.
"""
ACCEPTED_AMONG_SEVERAL = 1
"""The same where several processes accept: what one does not accept, another does at the same time."""
RESERVED_FILES = 128
"""File descriptors reserved for everything but clients: Postgres, the broker, S3, files."""


class Server(uvicorn.Server):
    """On SIGTERM, requests in progress have `drain_seconds` to end; streams end at once."""

    def __init__(
        self,
        front: Front,
        host: str,
        port: int,
        *,
        limits: Limits,
        connections: Connections,
        on_stop: Callable[[], None] = lambda: None,
        parent: Parent | None = None,
    ) -> None:
        self._front = front
        self._on_stop = on_stop
        self._parent = parent
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
            log_level="error",  # it logs each request that is not HTTP; `RefusalLog` counts them instead
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=ACCEPTED_AMONG_SEVERAL if parent else max(1, limits.max_connections // ACCEPT_SHARE),
            h11_max_incomplete_event_size=limits.max_header_bytes,
            timeout_keep_alive=int(limits.idle_seconds) + 1,  # our own deadline ends earlier
            timeout_graceful_shutdown=int(limits.drain_seconds),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Called by uvicorn, on the event loop."""
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                with listening.dup() as same:  # asyncio has set its own, small backlog
                    same.listen(BACKLOG)
        if self._parent is not None:
            self._parent.say(READY)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second, on the event loop."""
        if self._parent is not None and counter % 10 == 0 and not self._front.is_stuck:
            self._parent.say(ALIVE)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGINT and SIGTERM; Ctrl-C reaches the parent too, which passes it on."""
        if self._parent is None or sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Called by uvicorn, on the event loop."""
        self._on_stop()
        self._front.stop()
        await super().shutdown(sockets)


def serve_until_told(server: Server, sockets: list[socket] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; return when all requests are answered or the time for them is up.

    It accepts on these sockets instead of its own address if they are given.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again at its end, but a server that has drained must exit with 0.
        signal.signal(number, lambda *_: None)
    server.run(sockets)


def raise_file_limit() -> int:
    """Raise the limit of open files as far as allowed and return it: each connection is one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)
