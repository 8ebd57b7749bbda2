"""Downloads an image from an untrusted server: limited in time and size, from public addresses only.

It sends no cookies and no credentials, accepts no content encoding and ignores proxies in the environment;
`tasks.webhooks.connection` checks addresses and enforces the deadline. It does not check the image itself.
"""

import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore2

from tasks.errors import DownloadFailed
from tasks.webhooks.addresses import DEFAULT_PORTS, Network
from tasks.webhooks.client import ATTEMPT_CODES, as_sent
from tasks.webhooks.connection import MAX_HEADER_BYTES, Budget, PinningBackend, Resolve, resolve_by_dns

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_WORDS = {
    "address_refused": "its host has an address that is not public",
    "port_refused": "images are not downloaded from its port",
    "name_not_found": "its host has no address",
    "tls_failed": "its host has no trusted certificate",
    "timeout": "it took too long",
    "connection_failed": "its host cannot be reached",
    "connection_lost": "the connection was lost",
    "answer_malformed": "the response is not valid HTTP",
}


class ImageDownload:
    """Downloads within `timeout_seconds`, which include DNS, connections, TLS, redirects and the body."""

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
        """The body of a 200 response; raises `DownloadFailed`. Redirects are followed to https URLs only."""
        budget = Budget(time.monotonic() + self._timeout_seconds)
        for _ in range(MAX_REDIRECTS + 1):
            found = self._answer(url, budget)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise DownloadFailed(f"it redirects more than {MAX_REDIRECTS} times")

    def _answer(self, url: str, budget: Budget) -> bytes | str:
        """The body, or the target of a redirect."""
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
                raise DownloadFailed(f"it answered {response.status}")
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
        raise DownloadFailed("only https URLs are fetched, and none with a user name")
    return parts


def _location(response: httpcore2.Response) -> str | None:
    values = [value for name, value in response.headers if name.lower() == b"location"]
    return values[0].decode("latin-1") if values else None
