"""TLS in front of a server that has none, with a certificate of an authority of the tests' own."""

import socket
import ssl
import threading
from contextlib import suppress

import trustme

POSTGRES_ASKS_FOR_TLS = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""`SSLRequest`, to which a server with TLS answers `S` (PostgreSQL, "Message Formats")."""


class TlsFront:
    """Listens on loopback, speaks TLS with clients and passes bytes on to `target` in the clear."""

    def __init__(
        self, authority: trustme.CA, target: int, *, name: str = "127.0.0.1", is_postgres: bool = False
    ):
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(self._context)
        self._target, self._is_postgres = target, is_postgres
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.num_encrypted = 0
        """Connections whose client was content with the certificate."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self._is_postgres:
                if client.recv(8) != POSTGRES_ASKS_FOR_TLS:
                    return
                client.sendall(b"S")
            with (
                self._context.wrap_socket(client, server_side=True) as encrypted,
                socket.create_connection(("127.0.0.1", self._target)) as server,
            ):
                self.num_encrypted += 1
                back = threading.Thread(target=_pass_on, args=(server, encrypted), daemon=True)
                back.start()
                _pass_on(encrypted, server)
                back.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
