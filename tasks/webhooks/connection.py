"""Connects to checked addresses only, with limits on time and size.

It resolves the host, checks every address and connects only to checked ones, so that DNS rebinding has no
effect; the certificate is still verified for the host. It is a network backend of httpcore2 and does not know
what is sent.
"""

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore2

from tasks.errors import AddressRefused, HeaderTooLarge, NameNotFound, PortRefused, TlsFailed
from tasks.webhooks.addresses import Network, is_open, is_within, what_is_wrong_with_port

Resolve = Callable[[str, int], Sequence[str]]

MAX_HEADER_BYTES = 65_536
MAX_ADDRESSES = 8
READ_BYTES = 4096
WRITE_BYTES = 8192


def resolve_by_dns(host: str, port: int) -> list[str]:
    """Every address of a host, from the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(entry[4][0]) for entry in found]


@dataclass
class Budget:
    """The deadline of one attempt, on the monotonic clock; it may be moved nearer."""

    deadline: float

    def left(self, error: type[Exception]) -> float:
        """The seconds left; raises `error` if there are none."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise error("the attempt took too long")
        return seconds


class PinningBackend(httpcore2.NetworkBackend):
    """Connects only to addresses of a host that were checked."""

    def __init__(
        self,
        resolve: Resolve,
        allowed: Sequence[Network],
        ports: Sequence[int],
        budget: Budget,
        *,
        max_bytes: int = MAX_HEADER_BYTES,
    ) -> None:
        self._resolve, self._allowed, self._ports, self._budget = resolve, allowed, ports, budget
        self._max_bytes = max_bytes
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first address that answers; if one address is refused, the whole host is."""
        del timeout, local_address  # replaced by the deadline and by our own choice of address
        addresses = self._checked(host.strip("[]"), port)
        for position, address in enumerate(addresses):
            share = self._budget.left(httpcore2.ConnectTimeout) / (len(addresses) - position)
            try:
                stream = self._sockets.connect_tcp(
                    address, port, timeout=share, socket_options=socket_options
                )
                return _BoundedStream(stream, self._budget, self._max_bytes)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if position == len(addresses) - 1:
                    raise
        raise NameNotFound(f"{host} has no address")

    def _checked(self, host: str, port: int) -> list[str]:
        wrong_port = what_is_wrong_with_port(port, self._ports)
        if wrong_port and not self._allowed:
            raise PortRefused(wrong_port)
        addresses = list(dict.fromkeys(self._resolved(host, port)))
        for text in addresses:
            address = ipaddress.ip_address(text)
            if not is_open(address, self._allowed):
                # The address itself is not named: the account may be probing the local network.
                raise AddressRefused(f"{host} has a private or reserved address")
            if wrong_port and not is_within(address, self._allowed):
                raise PortRefused(wrong_port)
        return addresses[:MAX_ADDRESSES]

    def _resolved(self, host: str, port: int) -> Sequence[str]:
        # The system's resolver has no deadline; a thread that waits for it ends by itself.
        results: queue.SimpleQueue[Sequence[str] | OSError | UnicodeError] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                results.put(self._resolve(host, port))
            except (OSError, UnicodeError) as error:
                results.put(error)

        threading.Thread(target=look_up, daemon=True, name="webhook-dns").start()
        try:
            found = results.get(timeout=self._budget.left(httpcore2.ConnectTimeout))
        except queue.Empty:
            raise httpcore2.ConnectTimeout(f"resolving {host} took too long") from None
        if isinstance(found, Exception):
            raise NameNotFound(f"{host} cannot be resolved") from found
        return found


class _BoundedStream(httpcore2.NetworkStream):
    """A connection whose operations all end by the deadline, however slowly bytes arrive."""

    def __init__(self, stream: httpcore2.NetworkStream, budget: Budget, max_bytes: int) -> None:
        self._stream, self._budget, self._max_bytes, self._num_read = stream, budget, max_bytes, 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read available bytes; raises `HeaderTooLarge` after `max_bytes` in total."""
        del timeout
        if self._num_read > self._max_bytes:
            raise HeaderTooLarge(f"the response header has more than {self._max_bytes} bytes")
        max_bytes = min(max_bytes, READ_BYTES)
        data = self._stream.read(max_bytes, self._budget.left(httpcore2.ReadTimeout))
        self._num_read += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write the whole buffer in small pieces."""
        del timeout
        for start in range(0, len(buffer), WRITE_BYTES):
            left = self._budget.left(httpcore2.WriteTimeout)
            self._stream.write(buffer[start : start + WRITE_BYTES], left)

    def close(self) -> None:
        """Close the connection without waiting."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """Start TLS and verify the certificate for the host, not the address."""
        del timeout
        left = self._budget.left(httpcore2.ConnectTimeout)
        try:
            stream = self._stream.start_tls(ssl_context, server_hostname, left)
        except httpcore2.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLError):
                raise TlsFailed(str(error)) from error
            raise
        return _BoundedStream(stream, self._budget, self._max_bytes)

    def get_extra_info(self, info: str) -> Any:
        """Return what the socket reports."""
        return self._stream.get_extra_info(info)
