"""The address, API key and TLS settings, from arguments or the environment, checked before any request.

Owns the rule that the API key is sent to the API only. It opens no connection.
"""

import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from .calls import Call
from .errors import ConfigurationError

URL_VARIABLE, KEY_VARIABLE, CA_VARIABLE = "CALOTYPE_URL", "CALOTYPE_API_KEY", "CALOTYPE_CA_FILE"


@dataclass(frozen=True)
class Connection:
    """The address and the credentials of one account at one server."""

    url: str
    api_key: str
    timeout_seconds: float
    tls: ssl.SSLContext
    user_agent: str

    @property
    def api_options(self) -> dict[str, Any]:
        """Options of the `httpx2` client for the API. It follows no redirect: the key goes nowhere else."""
        headers = {"Authorization": f"Bearer {self.api_key}", "User-Agent": self.user_agent}
        return {**self._options, "base_url": self.url, "headers": headers}

    @property
    def link_options(self) -> dict[str, Any]:
        """Options of the `httpx2` client for presigned links, which contain their own credentials."""
        return {**self._options, "headers": {"User-Agent": self.user_agent}, "follow_redirects": True}

    def request_options(self, call: Call[Any]) -> dict[str, Any]:
        """Keyword arguments of `request` for this call; the read timeout includes `wait_seconds`."""
        seconds = self.timeout_seconds
        return {
            "params": dict(call.params),
            "headers": dict(call.headers),
            "json": call.json,
            "data": call.data,
            "files": call.files,
            "timeout": httpx2.Timeout(seconds, read=seconds + call.wait_seconds),
        }

    @property
    def _options(self) -> dict[str, Any]:
        # The proxies of the environment are not used for this machine.
        return {
            "timeout": self.timeout_seconds,
            "verify": self.tls,
            "trust_env": not _is_this_machine(self.url),
        }


def connection_to(
    url: str | None, api_key: str | None, *, timeout_seconds: float, ca_file: str | Path | None, version: str
) -> Connection:
    """The connection. Raises `ConfigurationError`, which names what is missing or not valid."""
    url = (url or os.environ.get(URL_VARIABLE, "")).strip().rstrip("/")
    api_key = (api_key or os.environ.get(KEY_VARIABLE, "")).strip()
    if not url:
        raise ConfigurationError(f"no address: set {URL_VARIABLE}, or give `url`")
    if not api_key:
        raise ConfigurationError(f"no API key: set {KEY_VARIABLE}, or give `api_key`")
    if not (api_key.isascii() and api_key.isprintable()):
        raise ConfigurationError("the API key contains characters that no key has")
    _check_url(url)
    return Connection(
        url,
        api_key,
        timeout_seconds,
        _tls(ca_file or os.environ.get(CA_VARIABLE) or None),
        f"calotype/{version}",
    )


def _check_url(url: str) -> None:
    """Raise `ConfigurationError` unless paths can be appended to `url`. No message shows its password."""
    rule = "an address is https://HOST or http://HOST:PORT, optionally with a path"
    if "@" in url:
        # httpx2 would send the user as Basic credentials in place of the key.
        raise ConfigurationError(
            f"the address contains a user or an '@': {rule}; the key is given separately"
        )
    for sign, means in (("?", "a query or ends in '?'"), ("#", "a fragment or ends in '#'")):
        if sign in url:
            raise ConfigurationError(f"the address {url.partition(sign)[0]!r} has {means}: {rule}")
    try:
        httpx2.URL(url)
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except (httpx2.InvalidURL, ValueError) as error:
        raise ConfigurationError(f"{url!r} is not an address: {error}") from error
    if not is_address:
        raise ConfigurationError(f"{url!r} is not an address: {rule}")


def _tls(ca_file: str | Path | None) -> ssl.SSLContext:
    """Trust the system's authorities, or those of SSL_CERT_FILE or SSL_CERT_DIR, and those in `ca_file`."""
    try:
        context = httpx2.create_ssl_context()
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        place = ca_file or os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        raise ConfigurationError(f"{place} is not a file of certificates: {error}") from error
    return context


def _is_this_machine(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name
