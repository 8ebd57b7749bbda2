"""A stranger's server, mostly of webhooks: HTTPS on loopback, and it behaves as the test says."""

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trustme


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


Behave = Callable[[BaseHTTPRequestHandler, Received], None]


def answer(status: int, body: bytes = b"", **headers: str) -> Behave:
    """Answers every request alike; `Retry_After` becomes `Retry-After`."""

    def behave(handler: BaseHTTPRequestHandler, _: Received) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return behave


class Receiver:
    """An HTTPS server with a certificate of `ca` for `names`; it keeps what it gets."""

    def __init__(
        self,
        ca: trustme.CA,
        behave: Behave,
        *,
        names: tuple[str, ...] = ("localhost", "127.0.0.1"),
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.received: list[Received] = []
        self.behave = behave
        self._arrived = threading.Condition()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*names).configure_cert(context)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Received(self.path, {**self.headers}, body)
                with outer._arrived:
                    outer.received.append(request)
                    outer._arrived.notify_all()
                outer.behave(self, request)

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                return  # a sender that hangs up is what many of the tests want

        self._server = Server((address, port), Handler)
        # The handshake happens in the thread of its connection, so that one that hangs holds up no other.
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str = "/hook", host: str = "localhost") -> str:
        """Where it listens, by a name of its certificate."""
        return f"https://{host}:{self.port}{path}"

    def wait_for(self, count: int, seconds: float = 120) -> bool:
        """Whether it has got that many requests within that time."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self.received) >= count, seconds)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
