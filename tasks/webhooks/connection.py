"""A connection to a checked address, cut off when its time or its size is used up.

The name is resolved here, every address is checked, and only what was checked is connected to, so that a
name which points elsewhere a moment later changes nothing; the certificate is still that of the name. It
is httpcore2's network backend and knows nothing of what is sent.
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

from tasks.webhooks.addresses import Network, is_open, is_within, what_is_wrong_with_port

Resolve = Callable[[str, int], Sequence[str]]

MAX_HEADER_BYTES = 65_536
MAX_ADDRESSES = 8
READ_BYTES = 4096
WRITE_BYTES = 8192


class AddressRefused(Exception):
    """The name leads to an address that webhooks are not sent to."""


class PortRefused(Exception):
    """The URL names a port that webhooks are not sent to."""


class NameNotFound(Exception):
    """The name has no address."""


class TlsFailed(Exception):
    """No trusted connection under this name: mostly a certificate that is wrong."""


class HeaderTooLarge(Exception):
    """The receiver sends more header than any receiver needs."""


def resolve_by_dns(host: str, port: int) -> list[str]:
    """Every address of a name, as the system resolves it."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(entry[4][0]) for entry in found]


@dataclass
class Budget:
    """How long an attempt may go on; moved nearer once the status is known."""

    deadline: float

    def left(self, error: type[Exception]) -> float:
        """Seconds left; raises `error` when there are none."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise error("the attempt took too long")
        return seconds


class PinningBackend(httpcore2.NetworkBackend):
    """Connects to the checked addresses of a name and to no other."""

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
        """A connection to the first checked address that answers; one bad address refuses the name."""
        del timeout, local_address  # the budget's; ours
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
                # Not which one: the account may be looking for what is inside.
                raise AddressRefused(f"{host} leads to a private or reserved address")
            if wrong_port and not is_within(address, self._allowed):
                raise PortRefused(wrong_port)
        return addresses[:MAX_ADDRESSES]

    def _resolved(self, host: str, port: int) -> Sequence[str]:
        # The system's resolver knows no deadline; a thread that still waits for it ends by itself.
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
            raise httpcore2.ConnectTimeout(f"looking up {host} took too long") from None
        if isinstance(found, Exception):
            raise NameNotFound(f"{host} cannot be looked up") from found
        return found


class _BoundedStream(httpcore2.NetworkStream):
    """A connection whose every operation ends by the budget's deadline, however slowly bytes drip."""

    def __init__(self, stream: httpcore2.NetworkStream, budget: Budget, max_bytes: int) -> None:
        self._stream, self._budget, self._max_bytes, self._num_read = stream, budget, max_bytes, 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Bytes as they come, up to what headers and what is wanted of a body may take."""
        del timeout
        if self._num_read > self._max_bytes:
            raise HeaderTooLarge(f"the answer has more than {self._max_bytes} bytes of header")
        max_bytes = min(max_bytes, READ_BYTES)
        data = self._stream.read(max_bytes, self._budget.left(httpcore2.ReadTimeout))
        self._num_read += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """The whole buffer, a piece at a time."""
        del timeout
        for start in range(0, len(buffer), WRITE_BYTES):
            left = self._budget.left(httpcore2.WriteTimeout)
            self._stream.write(buffer[start : start + WRITE_BYTES], left)

    def close(self) -> None:
        """At once: nobody is waited for."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """TLS with the name that was asked for, not the address."""
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
        """As the socket has it."""
        return self._stream.get_extra_info(info)
