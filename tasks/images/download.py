"""One GET of an image from a stranger's server: within a time and a size, from public addresses alone.

It sends no cookie and no credentials, decodes no encoding and reads no proxy from the environment;
`tasks.webhooks.connection` decides where it may go and when it ends. It does not look into what it gets.
"""

import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore2

from tasks.webhooks.addresses import DEFAULT_PORTS, Network
from tasks.webhooks.client import ATTEMPT_CODES, as_sent
from tasks.webhooks.connection import MAX_HEADER_BYTES, Budget, PinningBackend, Resolve, resolve_by_dns

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_WORDS = {
    "address_refused": "it leads to an address that is not public",
    "port_refused": "its port is not one that images are fetched from",
    "name_not_found": "its host has no address",
    "tls_failed": "its host has no trusted certificate",
    "timeout": "it took too long",
    "connection_failed": "its host cannot be connected to",
    "connection_lost": "the connection was lost",
    "answer_malformed": "the answer is no HTTP",
}


class DownloadFailed(Exception):
    """The image was not had; the message says why, and nothing of what is inside the network."""


class ImageDownload:
    """Gets within `timeout_seconds` in all: names, connections, TLS, redirects and the body together."""

    def __init__(
        self,
        *,
        max_bytes: int,
        timeout_seconds: float,
        allowed_networks: Sequence[Network] = (),
        ports: Sequence[int] = DEFAULT_PORTS,
        ca_file: Path | None = None,
        resolve: Resolve = resolve_by_dns,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._allowed = tuple(allowed_networks)
        self._ports = tuple(ports)
        self._resolve = resolve
        self._tls = ssl.create_default_context()
        if ca_file is not None:
            self._tls.load_verify_locations(ca_file)

    def get(self, url: str) -> bytes:
        """The body of a 200; raises `DownloadFailed`. Redirects are followed to https URLs alone."""
        budget = Budget(time.monotonic() + self._timeout_seconds)
        for _ in range(MAX_REDIRECTS + 1):
            found = self._answer(url, budget)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise DownloadFailed(f"it redirects more than {MAX_REDIRECTS} times")

    def _answer(self, url: str, budget: Budget) -> bytes | str:
        """The body, or where it is to be had."""
        try:
            return self._exchange(_checked(url), budget)
        except DownloadFailed:
            raise
        except Exception as error:
            code = next((code for kind, code in ATTEMPT_CODES.items() if isinstance(error, kind)), None)
            if code is None:
                raise
            raise DownloadFailed(_WORDS[code]) from error

    def _exchange(self, parts: SplitResult, budget: Budget) -> bytes | str:
        backend = PinningBackend(
            self._resolve,
            self._allowed,
            self._ports,
            budget,
            max_bytes=MAX_HEADER_BYTES + self._max_bytes,
        )
        sent = {
            "Host": parts.netloc,
            "Accept": "image/png, image/jpeg, image/webp",
            "Accept-Encoding": "identity",
            "Connection": "close",
            "User-Agent": "calotype",
        }
        with (
            httpcore2.ConnectionPool(self._tls, max_connections=1, network_backend=backend) as pool,
            pool.stream("GET", as_sent(parts), headers=list(sent.items())) as response,
        ):
            if response.status in _REDIRECTS and (target := _location(response)):
                return target
            if response.status != 200:
                raise DownloadFailed(f"it answers {response.status}")
            return self._body(response)

    def _body(self, response: httpcore2.Response) -> bytes:
        data = bytearray()
        for chunk in response.iter_stream():
            data += chunk
            if len(data) > self._max_bytes:
                raise DownloadFailed(f"it has more than {self._max_bytes} bytes")
        return bytes(data)


def _checked(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme != "https" or "@" in parts.netloc or not parts.hostname:
        raise DownloadFailed("only https URLs are fetched, without a user's name")
    return parts


def _location(response: httpcore2.Response) -> str | None:
    values = [value for name, value in response.headers if name.lower() == b"location"]
    return values[0].decode("latin-1") if values else None
