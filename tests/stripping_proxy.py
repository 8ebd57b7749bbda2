"""A small reverse proxy that serves another server under a prefix, as nginx and Caddy do."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"})


@dataclass
class Proxied:
    """A running proxy; `strays` are the paths outside of the prefix that it was asked for."""

    port: int
    prefix: str
    strips: bool = True
    upstream_port: int = 0
    strays: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"


@contextmanager
def proxied(prefix: str, *, strips: bool = True) -> Iterator[Proxied]:
    """The proxy, listening; it forwards to `upstream_port` once that is set."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._forward()

        do_POST = do_HEAD = do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            bare = self.path.partition("?")[0]
            if bare != prefix and not bare.startswith(prefix + "/"):
                found.strays.append(self.path)
                self.send_error(404)
                return
            path = (self.path.removeprefix(prefix) or "/") if strips else self.path
            upstream = http.client.HTTPConnection("127.0.0.1", found.upstream_port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            upstream.request(self.command, path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP | {"content-length", "date", "server"}:
                    self.send_header(name, value)
            upstream.close()
            self.send_header("Content-Length", str(len(data)))
            try:
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:  # a browser that goes to another page takes no more of this one
                self.close_connection = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found = Proxied(server.server_address[1], prefix, strips)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield found
        server.shutdown()
        thread.join()
