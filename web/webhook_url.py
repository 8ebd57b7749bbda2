"""Whether a webhook URL may be stored: https, a plain host, no address that is literally private.

Names are not resolved here; every resolved address is checked again when something is sent.
"""

import ipaddress
import re
from urllib.parse import urlsplit

MAX_CHARACTERS = 2048
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", re.IGNORECASE)
_LOCAL_NAMES = ("localhost", "local", "internal", "localdomain", "home.arpa")
# Ranges that one Python or another calls global: transition and anycast relays that can lead inside.
_CLOSED = [
    ipaddress.ip_network(text)
    for text in (
        "192.88.99.0/24",
        "::/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/23",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
]


def check_webhook_url(url: str) -> str:
    """The URL itself; raises `ValueError` saying what is wrong with it."""
    if len(url) > MAX_CHARACTERS:
        raise ValueError(f"is longer than {MAX_CHARACTERS} characters")
    if not all("\x21" <= character <= "\x7e" for character in url) or "\\" in url:
        raise ValueError("holds a character that a URL cannot hold: only printable ASCII is accepted")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError as error:
        raise ValueError("is not a URL") from error
    if parts.scheme != "https":
        raise ValueError("must start with https://")
    if "@" in parts.netloc:
        raise ValueError("must not carry a user name or password")
    _check_host(host.rstrip("."))
    return url


def _check_host(host: str) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        _check_name(host)
        return
    closed = any(address in network for network in _CLOSED if network.version == address.version)
    if closed or address.is_multicast or not address.is_global:
        raise ValueError("names a private or reserved address; only public ones are accepted")


def _check_name(host: str) -> None:
    if not _HOST.fullmatch(host):
        raise ValueError("has no host name that could be looked up")
    last = host.rpartition(".")[2].lower()
    if re.fullmatch(r"\d+|0x[0-9a-f]*", last):
        raise ValueError("writes an address in a form that is not accepted: use four decimal numbers")
    if any(host.lower() == name or host.lower().endswith("." + name) for name in _LOCAL_NAMES):
        raise ValueError("names this machine or a private network; only public hosts are accepted")
