"""One thread's HTTP connections: to a service with its key, and to the hosts of image links, without it.

It uses `http.client`, which takes a small part of the CPU that httpx2 takes for a request; on the machine of
the service that is taken from the service. It repeats no request to the service.
"""

import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from errno import EADDRNOTAVAIL, EMFILE, ENFILE
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ANSWER_SECONDS = 60.0
"""How long an answer may take beyond the seconds that the request asks the service to wait."""
IDLE_SECONDS = 60.0
"""A connection that was idle longer is made anew: the API closes them after 150 s, proxies earlier."""
LOST = (OSError, HTTPException)
"""What a request raises when no answer comes."""


def ran_out(error: BaseException) -> bool:
    """Whether the load generator had no file or port left, which is no fault of the service."""
    return isinstance(error, OSError) and error.errno in (EMFILE, ENFILE, EADDRNOTAVAIL)


@dataclass(frozen=True)
class Place:
    """Where a service answers, its key, and a file of certificates to trust beside the system's."""

    url: str
    api_key: str = ""
    ca_file: Path | None = None

    def trust(self) -> ssl.SSLContext | None:
        """What https needs; None for a service over http."""
        if not self.url.startswith("https:"):
            return None
        context = ssl.create_default_context()
        if self.ca_file is not None:
            context.load_verify_locations(self.ca_file)
        return context


@dataclass(frozen=True)
class Answer:
    """A status, headers by their names in lower case, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object of the body; empty if it is something else."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def refusal(self) -> str:
        """The error's code in a problem document, or the status."""
        return str(self.document.get("code") or f"http_{self.status}")


class Connection:
    """Connections that stay open, for one thread. `trust` is that of `Place.trust`."""

    def __init__(self, place: Place, trust: ssl.SSLContext | None) -> None:
        self._place, self._trust = place, trust
        self._path = urlsplit(place.url).path.rstrip("/")
        self._hosts: dict[tuple[str, str], _Host] = {}
        self._headers = {"Authorization": f"Bearer {place.api_key}"} if place.api_key else {}

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        wait_seconds: float = 0.0,
    ) -> Answer:
        """Send a request to the service; `wait_seconds` is how long it was asked to wait. Raises `LOST`."""
        host = self._host(self._place.url)
        return host.ask(
            method,
            self._path + path,
            body,
            {**self._headers, **(headers or {})},
            wait_seconds + ANSWER_SECONDS,
        )

    def fetch(self, url: str) -> Answer:
        """GET a link, without the key. Raises `LOST`.

        It is sent again if a connection that was kept open has ended.
        """
        address, host = urlsplit(url), self._host(url)
        target = f"{address.path or '/'}?{address.query}" if address.query else address.path or "/"
        was_open = host.is_open
        try:
            return host.ask("GET", target, None, {}, ANSWER_SECONDS)
        except LOST:
            if not was_open:
                raise
            return host.ask("GET", target, None, {}, ANSWER_SECONDS)

    def another(self) -> "Connection":
        """Connections to the same place, for another thread."""
        return Connection(self._place, self._trust)

    def close(self) -> None:
        """Close every connection."""
        for host in self._hosts.values():
            host.close()

    def _host(self, url: str) -> "_Host":
        address = urlsplit(url)
        key = (address.scheme, address.netloc)
        if key not in self._hosts:
            name, port = address.hostname or "", address.port
            http = (
                HTTPSConnection(name, port, context=self._trust)
                if address.scheme == "https"
                else HTTPConnection(name, port)
            )
            self._hosts[key] = _Host(http)
        return self._hosts[key]


class _Host:
    """One connection, made when it is needed and closed after an error."""

    def __init__(self, http: HTTPConnection) -> None:
        self._http, self._used_at = http, 0.0

    @property
    def is_open(self) -> bool:
        return self._http.sock is not None

    def ask(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], seconds: float
    ) -> Answer:
        if time.monotonic() - self._used_at > IDLE_SECONDS:
            self._http.close()
        self._http.timeout = seconds
        if self._http.sock is not None:
            self._http.sock.settimeout(seconds)
        try:
            self._http.request(method, target, body, headers)
            response = self._http.getresponse()
            found = response.read()
        except BaseException:
            self._http.close()
            raise
        self._used_at = time.monotonic()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, found)

    def close(self) -> None:
        self._http.close()
