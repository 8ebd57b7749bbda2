"""Serves metrics to Prometheus over HTTP/1.1, on a separate port and thread in each process.

Any program that reaches the port may connect, so connections, headers and durations are limited. Responses
are built one at a time, since some read Postgres. It knows no metric: it serves the registry it is given.
"""

import asyncio
import gzip
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

log = structlog.get_logger()

MAX_CONNECTIONS = 16
"""Beyond this, the oldest connection is closed, preferably one without a complete request."""
BACKLOG = 1024
"""Connections that may wait to be accepted. If it overflows, a client's SYN is dropped and repeated a second
later, behind clients that connected after it."""
MAX_HEADER_BYTES = 8192
HEADER_SECONDS = 5.0
ANSWER_SECONDS = 30.0
"""The time to build a response and send it."""
LINGER_SECONDS = 5.0
"""How long a client that is still sending may take to read the response."""


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> None:
    """Serve `GET /metrics` at this address until the process ends; does nothing if `port` is 0.

    A port that is in use is logged and not fatal.
    """
    if not port:
        return
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        log.warning("metrics_not_served", host=host, port=port, error=str(error))
        return
    server = _Server(registry)
    threading.Thread(target=lambda: asyncio.run(server.run(listener)), name="metrics", daemon=True).start()


class _Server:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._connections: dict[asyncio.Task[None], asyncio.WriteTransport] = {}  # in order of age
        self._asked: set[asyncio.Task[None]] = set()  # those whose request is complete
        self._maker = ThreadPoolExecutor(1, "metrics-answer")

    async def run(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(
            self._connected, sock=listener, limit=MAX_HEADER_BYTES, backlog=BACKLOG
        )
        await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            self._cut_one()
        task = asyncio.current_task()
        assert task is not None  # asyncio runs this as one
        self._connections[task] = writer.transport
        try:
            async with asyncio.timeout(HEADER_SECONDS):
                header = await reader.readuntil(b"\r\n\r\n")
            self._asked.add(task)
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.write(await self._answer(header.decode("latin-1")))
                await writer.drain()
                writer.write_eof()
            # Unread data would cause a reset, by which a client that is still sending loses the response.
            async with asyncio.timeout(LINGER_SECONDS):
                while await reader.read(MAX_HEADER_BYTES):
                    pass
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # too slow, too large or gone: there is no client to answer
        except asyncio.CancelledError:
            pass  # closed in favour of another connection
        finally:
            self._connections.pop(task, None)
            self._asked.discard(task)
            writer.transport.abort()

    def _cut_one(self) -> None:
        # Removed at once: many may connect before the cancelled task runs, and each must close another one.
        task = min(self._connections, key=self._asked.__contains__)
        self._connections.pop(task).abort()
        task.cancel()

    async def _answer(self, header: str) -> bytes:
        request_line, *lines = header.removesuffix("\r\n\r\n").split("\r\n")
        words = request_line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        method, target, _ = words
        if target.partition("?")[0] != "/metrics":
            return _response(HTTPStatus.NOT_FOUND)
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")
        fields = {name.strip().lower(): value for name, _, value in (line.partition(":") for line in lines)}
        loop = asyncio.get_running_loop()
        body, headers = await loop.run_in_executor(self._maker, self._exposition, fields)
        return _response(HTTPStatus.OK, body, has_body=method == "GET", **headers)

    def _exposition(self, fields: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        encode, content_type = choose_encoder(fields.get("accept", ""))
        body, headers = encode(self._registry), {"Content-Type": content_type, "Vary": "Accept-Encoding"}
        if "gzip" in fields.get("accept-encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        return body, headers


def _response(
    status: HTTPStatus, body: bytes | None = None, *, has_body: bool = True, **headers: str
) -> bytes:
    if body is None:
        body = f"{status.phrase}; the metrics are at /metrics\n".encode()
        headers["Content-Type"] = "text/plain; charset=utf-8"
    headers |= {"Content-Length": str(len(body)), "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode("latin-1") + body * has_body
